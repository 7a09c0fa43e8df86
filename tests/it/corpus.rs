//! The fuzz targets over their seed corpora, as plain tests.

use std::path::Path;

#[path = "../../fuzz/bodies/index.rs"]
mod index;
#[path = "../../fuzz/bodies/record.rs"]
mod record;
#[path = "../../fuzz/bodies/tar.rs"]
mod tar;
#[path = "../../fuzz/bodies/volume.rs"]
mod volume;

fn each(target: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        run(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0, "no seeds for {target}");
}

#[test]
fn index_seeds() {
    each("index", index::run);
}

#[test]
fn record_seeds() {
    each("record", record::run);
}

#[test]
fn tar_seeds() {
    each("tar", tar::run);
}

#[test]
fn volume_seeds() {
    each("volume", volume::run);
}
