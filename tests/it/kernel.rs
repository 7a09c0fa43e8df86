//! A real source tree: Linux, as the distribution packs it (`drivers/net`, or all of it with `BK_TEST_KERNEL=whole`).

use std::fs;
use std::path::Path;

use crate::roundtrip::exact;
use crate::support::inventory::{assert_same, inventory};
use crate::support::tools::{need, shell_ok, skip};
use crate::support::{World, is_root};

const SOURCE: &str = "/usr/src/linux-source-6.1.tar.xz";

#[test]
fn the_kernel_tree_goes_round_by_bk_and_by_stock_tools() {
    let me = "the_kernel_tree_goes_round_by_bk_and_by_stock_tools";
    if !need(me, &["xz", "tar", "bsdtar", "zstd"]) {
        return;
    }
    if !Path::new(SOURCE).exists() {
        skip(me, &format!("no {SOURCE}"));
        return;
    }
    let world = World::new("kernel");
    let whole = std::env::var("BK_TEST_KERNEL").is_ok_and(|v| v == "whole");
    let members = if whole { "" } else { "linux-source-6.1/drivers/net" };
    shell_ok(&format!("tar -C \"$1\" -xJf {SOURCE} {members}"), &[&world.src]);
    let before = inventory(&world.src);
    assert!(before.len() > 3000);
    world.snapshot("kernel", "--part-size 16MiB").ok();
    world.bk("verify --data").run().ok();
    let (target, ran) = world.restore("kernel/1", "out");
    ran.ok();
    assert_same(&before, &inventory(&target), &exact(), "bk restore");
    fs::remove_dir_all(&target).unwrap();
    let run = world.parts("kernel", "tree-")[0].parent().unwrap().to_owned();
    let compare = crate::support::inventory::Compare { owner: is_root(), ..exact() };
    for line in ["cat \"$1\"/tree-* | zstd -dc | tar -xpf - -C \"$2\"", "cat \"$1\"/tree-* | bsdtar -xpf - -C \"$2\""] {
        fs::create_dir(&target).unwrap();
        let output = shell_ok(line, &[&run, &target]);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
        assert_same(&before, &inventory(&target), &compare, line);
        fs::remove_dir_all(&target).unwrap();
    }
}
