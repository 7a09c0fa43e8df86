//! `RESTORE.txt`: the exact commands that restore this snapshot without bk.

use std::fmt::Write as _;

use super::{codec::Codec, record::Snapshot};

/// The text for a snapshot. `parts` are the names of its parts in order; `snapshot.restore_txt` is not used.
pub fn text(snapshot: &Snapshot, parts: &[String]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "This directory holds snapshot {}/{} of {}, taken at {} by bk.\nIt can be restored without bk. Run these commands in this directory.\n",
        snapshot.job, snapshot.seq, snapshot.node, snapshot.taken_at
    );
    let (decode, package) = match snapshot.codec {
        Codec::Zstd(_) => ("zstd -dc", "zstd"),
        Codec::Bzip2(_) => ("bzip2 -dc", "bzip2"),
        Codec::None => ("cat", "coreutils"),
    };
    if parts.iter().any(|name| name.starts_with("tree-")) {
        let _ = writeln!(
            out,
            "The tree (needs GNU tar and {package}; as root, into the directory TARGET):\n\n    mkdir -p TARGET\n    {decode} tree-*.tar{} | tar -x -p --numeric-owner --xattrs --xattrs-include='*' --acls -C TARGET -f -\n",
            snapshot.codec.suffix()
        );
        let _ = writeln!(
            out,
            "Leave out `--xattrs --xattrs-include='*' --acls` for a tar without them. With bsdtar: `{decode} tree-*.tar{} | bsdtar -xp -C TARGET -f -`.",
            snapshot.codec.suffix()
        );
        let _ = writeln!(
            out,
            "Its parts in order (`{decode}` joins them; each also lists alone, but where a large file runs on):\n"
        );
        list(&mut out, parts, "tree-");
    }
    for stream in &snapshot.streams {
        let prefix = format!("stream-{}-", stream.name);
        let _ = writeln!(
            out,
            "The stream `{}`, {} bytes, BLAKE3 {}:\n\n    {decode} {prefix}*{} > {}\n",
            stream.name,
            stream.content_bytes,
            stream.digest,
            snapshot.codec.suffix(),
            stream.name
        );
        list(&mut out, parts, &prefix);
    }
    if snapshot.totals.incomplete > 0 {
        let _ = writeln!(
            out,
            "{} entries could not be saved as they were; `.bk/incomplete` in the tree names them. Bytes that could not be read are zeros there. The first:\n",
            snapshot.totals.incomplete
        );
        for entry in &snapshot.incomplete {
            let _ = writeln!(out, "    {} ({})", entry.path, entry.why);
        }
    }
    out
}

fn list(out: &mut String, parts: &[String], prefix: &str) {
    let is_number = |rest: &str| rest.bytes().next().is_some_and(|b| b.is_ascii_digit());
    for name in parts.iter().filter(|name| name.strip_prefix(prefix).is_some_and(is_number)) {
        let _ = writeln!(out, "    {name}");
    }
    out.push('\n');
}
