//! Orders of memory: the shipped files whose correctness hangs on them, compiled against loom's atomics and tried in
//! every order of their threads and every value that a load may bring.
//!
//! - No copy of the code: the files are the engine's own, by their paths.
//! - Each rule has a flaw beside it, which loom must find: a model that finds nothing shows nothing.
//! - Loom knows no load that sees what is stored later, and takes sequentially consistent accesses for acquiring and
//!   releasing ones. What hangs on those (who parks, who is called back) is in `tests/models`.

mod sync;

#[allow(unreachable_pub, reason = "others use it where it is at home")]
#[path = "../../../stp-host/src/control/bell.rs"]
mod bell;
#[allow(dead_code, reason = "the board uses all of it")]
#[path = "../../../stp-host/src/engine/board/cell.rs"]
mod cell;
#[path = "../../../stp-host/src/engine/mailbox.rs"]
mod mailbox;
#[allow(dead_code, reason = "the marks use all of it")]
#[path = "../../../stp-host/src/rendezvous/told.rs"]
mod told;
#[path = "../../../stp-medium/src/words.rs"]
mod words;

mod lane;
mod marks;
mod memory;
mod post;

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::model::Builder;

/// Tries every order.
fn every_order(model: impl Fn() + Sync + Send + 'static) {
    builder().check(model);
}

/// Some order must break the model.
fn is_found(model: impl Fn() + Sync + Send + 'static) {
    let tried = catch_unwind(AssertUnwindSafe(|| builder().check(model)));
    assert!(tried.is_err(), "the flaw is not found");
}

/// So often a thread is stopped where it need not wait: what takes more is not tried.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder
}
