//! What arrives is what was sent: every kind of entry, both ways.

use std::fs::{self};
use std::os::unix::fs::symlink;

use crate::support::*;

#[test]
fn a_tree_with_everything_goes_there_and_back() {
    let two = Two::new();
    make_tree(&two.local("tree"));
    let line = line(&two.served());
    // To a new name, into an existing folder, and the contents only.
    cp(&line, TREE, &[&two.local("tree"), &"beta:copy"]).unwrap();
    assert_same(&two.local("tree"), &two.served().join("copy"));
    cp(&line, TREE, &[&two.local("tree"), &"beta:copy/empty"]).unwrap();
    assert_same(&two.local("tree"), &two.served().join("copy/empty/tree"));
    fs::create_dir(two.local("back")).unwrap();
    cp(&line, TREE, &[&"beta:copy/empty/tree", &two.local("back")]).unwrap();
    assert_same(&two.local("tree"), &two.local("back/tree"));
    cp(
        &line,
        TREE,
        &[&"beta:copy/empty/tree", &two.local("renamed")],
    )
    .unwrap();
    assert_same(&two.local("tree"), &two.local("renamed"));
    fs::create_dir(two.local("flat")).unwrap();
    cp(&line, TREE, &[&"beta:copy/empty/.", &two.local("flat")]).unwrap();
    assert_same(&two.local("tree"), &two.local("flat/tree"));
}

#[test]
fn a_second_copy_moves_nothing() {
    let two = Two::new();
    make_tree(&two.local("tree"));
    let line = line(&two.served());
    let first = cp(&line, TREE, &[&two.local("tree"), &"beta:"]).unwrap();
    assert!(first.moved > 3 << 20);
    let second = cp(&line, TREE, &[&two.local("tree"), &"beta:"]).unwrap();
    assert_eq!(second.moved, 0);
    let mut back = cp(&line, TREE, &[&"beta:tree", &two.local("back")]).unwrap();
    assert_eq!(back.moved, first.moved);
    back = cp(&line, TREE, &[&"beta:tree/.", &two.local("back")]).unwrap();
    assert_eq!(back.moved, 0);
    assert_same(&two.local("tree"), &two.local("back"));
    // Same size and time but other contents: found out and sent.
    fs::write(two.served().join("tree/small"), b"HELLO").unwrap();
    set_mtime(&two.served().join("tree/small"), 1_000_000_000);
    assert_eq!(
        cp(&line, TREE, &[&two.local("tree"), &"beta:"])
            .unwrap()
            .moved,
        5
    );
    assert_same(&two.local("tree"), &two.served().join("tree"));
}

#[test]
fn many_sources_and_single_files() {
    let two = Two::new();
    for name in ["one", "two", "three"] {
        fs::write(two.local(name), name).unwrap();
    }
    let line = line(&two.served());
    fs::create_dir(two.served().join("in")).unwrap();
    cp(
        &line,
        PLAIN,
        &[
            &two.local("one"),
            &two.local("two"),
            &two.local("three"),
            &"beta:in",
        ],
    )
    .unwrap();
    assert_eq!(names(&two.served().join("in")), ["one", "three", "two"]);
    cp(&line, PLAIN, &[&two.local("one"), &"beta:in/uno"]).unwrap();
    assert_eq!(fs::read(two.served().join("in/uno")).unwrap(), b"one");
    fs::create_dir(two.local("got")).unwrap();
    cp(
        &line,
        PLAIN,
        &[&"beta:in/one", &"beta:./in//two", &two.local("got")],
    )
    .unwrap();
    assert_eq!(names(&two.local("got")), ["one", "two"]);
    cp(&line, PLAIN, &[&"beta:in/one", &two.local("got/two")]).unwrap();
    assert_eq!(fs::read(two.local("got/two")).unwrap(), b"one");
    // Without -r a link is what it points to.
    symlink("one", two.local("link")).unwrap();
    cp(&line, PLAIN, &[&two.local("link"), &"beta:"]).unwrap();
    assert!(
        fs::symlink_metadata(two.served().join("link"))
            .unwrap()
            .is_file()
    );
}
