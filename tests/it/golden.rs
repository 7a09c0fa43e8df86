//! Golden volumes: what any released bk wrote must be read for ever.

use std::{collections::BTreeMap, path::Path, process::Command};

use bk::format::volume::FORMAT_VERSION;

/// A copy of golden volume `version`: git keeps neither its modes nor protects it from a test's mistakes.
fn golden(version: u32) -> tempfile::TempDir {
    golden_named(&format!("v{version}"))
}

fn golden_named(name: &str) -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    assert!(from.is_dir(), "there is no golden volume {name} in tests/data");
    let dir = tempfile::tempdir().unwrap();
    assert!(Command::new("cp").arg("-r").arg(&from).arg(dir.path().join("v")).status().unwrap().success());
    dir
}

fn bk(dir: &Path, words: &str) -> Vec<u8> {
    let out = Command::new(env!("CARGO_BIN_EXE_bk"))
        .args(words.split(' '))
        .env("BK_VOLUME", dir.join("v"))
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(out.status.success(), "bk {words}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

#[test]
fn every_version_ever_written_is_read() {
    for version in 1..=FORMAT_VERSION {
        let dir = golden(version);
        bk(dir.path(), "verify --data");
        let listed = String::from_utf8(bk(dir.path(), "list --json")).unwrap();
        assert_eq!(listed.matches(r#""type":"snapshot""#).count(), 3, "{listed}");
        // Codec by codec the same tree, field by field as it was listed when the volume was made.
        let expected = include_str!("../data/v1.ls");
        for seq in 1..=3 {
            let found = String::from_utf8(bk(dir.path(), &format!("ls golden/{seq} -R"))).unwrap();
            assert_eq!(found, expected, "golden/{seq}");
            let stream = bk(dir.path(), &format!("cat golden/{seq} --stream numbers"));
            assert_eq!(stream, (1..=5000).map(|n| format!("{n}\n")).collect::<String>().into_bytes());
        }
    }
}

/// Levels 0, 1, 2, 2, 1 of a tree with deltas, a renamed file and directory, changed types and links; and a stream.
#[test]
fn a_golden_chain_is_read_at_every_level() {
    let dir = golden_named("v1-chain");
    bk(dir.path(), "verify --data");
    let expected = include_str!("../data/v1-chain.txt");
    for (n, want) in (1..=5).zip(expected.split("== golden/").skip(1)) {
        let (_, want) = want.split_once('\n').unwrap();
        let (rows, digest) = want.trim_end().rsplit_once('\n').unwrap();
        let found = String::from_utf8(bk(dir.path(), &format!("ls golden/{n} -R"))).unwrap();
        assert_eq!(found.trim_end(), rows, "golden/{n}");
        let tar = bk(dir.path(), &format!("export golden/{n}"));
        assert_eq!(&blake3::hash(&tar).to_hex()[..32], digest, "golden/{n}");
        let stream = bk(dir.path(), &format!("cat golden/{n} --stream numbers"));
        let last = [5000, 5100, 5200, 4900, 6000][n - 1];
        assert_eq!(stream, (1..=last).map(|n| format!("{n}\n")).collect::<String>().into_bytes());
    }
    let why = String::from_utf8(bk(dir.path(), "why golden/2")).unwrap();
    assert!(why.contains("before the move"), "{why}");
}

#[test]
fn golden_contents_are_what_they_were() {
    let dir = golden(1);
    let mut digests = BTreeMap::new();
    for path in ["d/text", "d/file", "d/hard", "d/sparse"] {
        let bytes = bk(dir.path(), &format!("cat golden/2 {path}"));
        digests.insert(path, (bytes.len(), blake3::hash(&bytes).to_hex()[..16].to_owned()));
    }
    let text: String = (0..3000).map(|n| format!("line {n}\n")).collect();
    let mut sparse = vec![0u8; 1 << 20];
    sparse[500_000] = b'x';
    for (path, bytes) in
        [("d/text", text.as_bytes()), ("d/file", b"hello\n"), ("d/hard", b"hello\n"), ("d/sparse", &sparse)]
    {
        assert_eq!(digests[path], (bytes.len(), blake3::hash(bytes).to_hex()[..16].to_owned()), "{path}");
    }
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let dir = golden(1);
    let file = dir.path().join("v/bk-volume.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let line = text.lines().next().unwrap().replace(r#""format_version":1"#, r#""format_version":2"#);
    std::fs::write(&file, format!("{line}\n\"{}\"\n", blake3::hash(line.as_bytes()).to_hex())).unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_bk"))
        .args(["snapshot", "--job", "golden", "/etc/hostname"])
        .env("BK_VOLUME", dir.path().join("v"))
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("format version 2"));
    assert_eq!(std::fs::read_dir(dir.path().join("v/log/golden")).unwrap().count(), 3);
}
