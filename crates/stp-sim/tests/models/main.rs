//! Models: small rules, explored in every order. What each assumes of time stands beside it, and where the
//! assumption is dropped the model must find what goes wrong: that is how it is known to look.

mod claim;
mod handshake;
mod helm;
mod sessions;
mod wake_up;

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, Model};

/// Explores everything; prints how much that was. What was found, by name.
pub(crate) fn explore<M>(name: &str, model: M) -> Vec<&'static str>
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Clone + PartialEq + Send + Sync,
    M::Action: Debug + Clone + PartialEq,
{
    let checker = model.checker().spawn_bfs().join();
    let found: Vec<_> = checker.discoveries().into_iter().collect();
    println!(
        "{name}: {} states, {} of them different, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    for (property, path) in &found {
        println!("{property}:\n{path}");
    }
    found.into_iter().map(|(property, _)| property).collect()
}
