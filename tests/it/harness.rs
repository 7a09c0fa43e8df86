//! The tests' own instruments: the generator makes what it says, and the comparison sees every kind of change.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::inventory::{Compare, assert_same, differences, inventory};
use crate::support::temp_dir;
use crate::support::tools::{need, need_root, shell_ok};
use crate::support::tree::{DEEP, Tree, chmod, touch};

type Change<'a> = &'a dyn Fn(&Path);

#[test]
fn one_seed_makes_one_tree() {
    let dir = temp_dir("harness");
    let trees = ["a", "b", "c"].map(|name| dir.path().join(name));
    for (n, tree) in trees.iter().enumerate() {
        fs::create_dir(tree).unwrap();
        Tree::new(if n == 2 { 8 } else { 7 }).build(tree);
    }
    let [a, b, c] = trees.map(|t| inventory(&t));
    let timeless = Compare { mtime: false, ..Compare::EXACT };
    assert_same(&a, &b, &timeless, "the same seed twice");
    assert!(!differences(&a, &c, &timeless).is_empty());
    assert!(a.keys().any(|path| path.len() == 4095));
    assert!(a.values().filter(|r| r.sparse).count() >= 7);
}

#[test]
fn a_faithful_copy_is_the_same_and_every_change_is_seen() {
    let me = "a_faithful_copy_is_the_same_and_every_change_is_seen";
    if !need(me, &["cp"]) || !need_root(me) {
        return;
    }
    let dir = temp_dir("harness");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::create_dir(&a).unwrap();
    // cp works by whole paths.
    Tree::new(9).without(DEEP).build(&a);
    shell_ok(r#"cp -a --sparse=auto "$1" "$2""#, &[&a, &b]);
    let before = inventory(&a);
    assert_same(&before, &inventory(&b), &Compare::EXACT, "cp -a");
    let changes: [(&str, Change<'_>); 9] = [
        ("plain/size-512", &|p| fs::write(p, [b'x'; 512]).unwrap()),
        ("meta/mode-4755", &|p| chmod(p, 0o755)),
        ("meta/time-one-ns", &|p| touch(p, 0, 2)),
        ("meta/owner-3", &|p| std::os::unix::fs::lchown(p, Some(3_000_001), None).unwrap()),
        ("links/dangling", &|p| {
            fs::remove_file(p).unwrap();
            symlink("elsewhere", p).unwrap();
        }),
        ("links/z-same-dir", &|p| {
            let bytes = fs::read(p).unwrap();
            fs::remove_file(p).unwrap();
            fs::write(p, bytes).unwrap();
        }),
        ("xattr/user", &|p| rustix::fs::removexattr(p, "user.b").unwrap()),
        ("sparse/trailing", &|p| {
            let bytes = fs::read(p).unwrap();
            fs::write(p, bytes).unwrap();
        }),
        ("special/fifo-0000", &|p| fs::remove_file(p).unwrap()),
    ];
    for (path, change) in changes {
        change(&b.join(path));
        let found = differences(&before, &inventory(&b), &Compare::EXACT);
        assert!(found.contains(path), "the change of {path} is not seen:\n{found}");
    }
}
