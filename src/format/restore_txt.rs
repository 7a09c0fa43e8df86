//! `RESTORE.txt`: the exact commands that restore this snapshot without bk.

use std::fmt::Write as _;

use super::{
    codec::Codec,
    record::{Snapshot, Stream},
};

/// What applies a level that holds deltas.
const SCRIPT: &str = include_str!("../../docs/apply-level.py");
/// GNU tar, but for the letters that come before and after.
const TAR_OPTIONS: &str = "-p --numeric-owner --xattrs --xattrs-include='*' --acls -C TARGET -f -";

/// How a level without deltas is applied where there is no GNU tar.
const NO_GNU_TAR: &str = "\n\
    With another tar, for a level without deltas: first remove what `.bk/deleted` in its archive names, when it is there\n\
    (`DECODE PARTS | tar -x -O -f - .bk/deleted | (cd TARGET && xargs -0 rm -rf --)`), then extract over what is left.";

/// More parts than this are not named by a pattern: a shell takes only so many names, and sorts `-100000` before `-10001`.
const PATTERN_COUNT_MAX: usize = 10_000;

/// A snapshot and the names of its objects.
pub type Member<'a> = (&'a Snapshot, Vec<String>);

/// The text for a snapshot. `parts` are the names of its parts in order, `before` is its chain without itself, level 0
/// first; `snapshot.restore_txt` is not used.
pub fn text(snapshot: &Snapshot, parts: &[String], before: &[Member<'_>]) -> String {
    let mut out = String::new();
    let own = (snapshot, parts.to_vec());
    let chain: Vec<&Member<'_>> = before.iter().chain([&own]).collect();
    head(&mut out, &chain);
    let script = chain.iter().any(|(one, _)| one.totals.deltas > 0 || one.streams.iter().any(|s| s.places.is_some()));
    if script {
        let _ = writeln!(
            out,
            "Levels that hold deltas need Python 3 and the script at the end of this text. This goes first:\n\n    SCRIPT=$(sed -n '/^#!/,$p' RESTORE.txt)\n"
        );
    }
    if parts.iter().any(|name| name.starts_with("tree-")) {
        tree(&mut out, &chain, parts);
    }
    for stream in &snapshot.streams {
        put_stream(&mut out, &chain, stream);
        list(&mut out, parts, &format!("stream-{}-", stream.name));
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
    if script {
        let _ = write!(out, "\nThe script, to the end of this text:\n\n{SCRIPT}");
    }
    out
}

fn head(out: &mut String, chain: &[&Member<'_>]) {
    let Some(((snapshot, _), before)) = chain.split_last() else { return };
    let (what, job, seq) = match &snapshot.copied_from {
        None => (String::new(), &snapshot.job, snapshot.seq),
        // Its own number is not known before its record is made, and this text must not depend on that.
        Some(from) => (format!("a copy, first stored on volume {}, of ", from.volume.as_str()), &from.job, from.seq),
    };
    let _ = writeln!(
        out,
        "This directory holds {what}snapshot {job}/{seq} of {}, taken at {} by bk.",
        snapshot.node, snapshot.taken_at
    );
    if !before.is_empty() {
        let _ = writeln!(out, "It is an increment of level {}. Its chain, each over the one before:\n", snapshot.level);
        for (one, _) in chain {
            let Snapshot { level, taken_at, .. } = one;
            let (job, seq) = one.copied_from.as_ref().map_or((&one.job, one.seq), |from| (&from.job, from.seq));
            let _ = writeln!(out, "- {job}/{seq}, level {level}, taken at {taken_at}: {}", one.run_id);
        }
        out.push('\n');
    }
    out.push_str("It can be restored without bk. Run these commands in this directory");
    out.push_str(if before.is_empty() { ".\n\n" } else { ", all of them, each once and in this order.\n\n" });
}

fn tree(out: &mut String, chain: &[&Member<'_>], parts: &[String]) {
    let Some((snapshot, _)) = chain.last() else { return };
    let (decode, package) = decoder(snapshot.codec);
    let _ = writeln!(out, "The tree (needs GNU tar and {package}; as root, into the directory TARGET):\n");
    out.push_str("    mkdir -p TARGET\n");
    for (one, names) in chain {
        let suffix = format!(".tar{}", one.codec.suffix());
        let (read, listed) = reading(one.codec, &place(chain, one), names, ("tree-", "*", &suffix));
        let _ = match (one.level, one.totals.deltas, listed) {
            (0, ..) => writeln!(out, "    {read} | tar -x {TAR_OPTIONS}"),
            (_, 0, _) => writeln!(out, "    {read} | tar -x -G --anchored --exclude=.bk/deleted {TAR_OPTIONS}"),
            (_, _, None) => {
                writeln!(out, "    python3 -c \"$SCRIPT\" {}tree-*{suffix} TARGET", place(chain, one))
            }
            // The script reads its archive twice: parts one after another are one part, too.
            (level, _, Some(listed)) => writeln!(
                out,
                "    {listed} | xargs cat > level-{level}{suffix}\n    python3 -c \"$SCRIPT\" level-{level}{suffix} TARGET\n    rm level-{level}{suffix}"
            ),
        };
    }
    out.push_str("\nLeave out `--xattrs --xattrs-include='*' --acls` for a tar without them.");
    if snapshot.level == 0 {
        let suffix = format!(".tar{}", snapshot.codec.suffix());
        let (read, _) = reading(snapshot.codec, "", parts, ("tree-", "*", &suffix));
        let _ = write!(out, " With bsdtar: `{read} | bsdtar -xp -C TARGET -f -`.");
    }
    if snapshot.level > 0 {
        out.push_str(NO_GNU_TAR);
    }
    let _ = writeln!(
        out,
        "\nIts parts in order (`{decode}` joins them; each also lists alone, but where a large file runs on):\n"
    );
    list(out, parts, "tree-");
}

/// The commands for a stream: the newest version that is stored whole, then the levels over it.
fn put_stream(out: &mut String, chain: &[&Member<'_>], stream: &Stream) {
    let name = &stream.name;
    let _ = writeln!(out, "The stream `{name}`, {} bytes, BLAKE3 {}:\n", stream.content_bytes, stream.digest);
    let stored = |(one, _): &&Member<'_>| one.streams.iter().find(|s| s.name == *name).map(|s| s.places.is_some());
    let whole = chain.iter().rposition(|one| stored(one) == Some(false)).unwrap_or(0);
    let levels = &chain[whole..];
    for (n, (one, names)) in levels.iter().enumerate() {
        let prefix = format!("stream-{name}-");
        // The name of another stream may begin with this one's.
        let (read, _) = reading(one.codec, &place(chain, one), names, (&prefix, "?????", one.codec.suffix()));
        let made = if n + 1 == levels.len() { name.to_string() } else { format!("{name}@{n}") };
        let _ = match n.checked_sub(1) {
            None => writeln!(out, "    {read} > {made}"),
            Some(old) => writeln!(out, "    {read} | python3 -c \"$SCRIPT\" --stream {name}@{old} {made}"),
        };
    }
    if levels.len() > 1 {
        let _ = writeln!(out, "    rm {name}@*");
    }
    out.push('\n');
}

/// What writes a stream's parts, decoded and in order, to standard output; and of very many what lists them by number.
///
/// The parts are those of `names` that are a prefix, a number and a suffix.
fn reading(
    codec: Codec,
    place: &str,
    names: &[String],
    (prefix, pattern, suffix): (&str, &str, &str),
) -> (String, Option<String>) {
    let (decode, _) = decoder(codec);
    if names.iter().filter(|name| number(name, prefix).is_some()).count() <= PATTERN_COUNT_MAX {
        return (format!("{decode} {place}{prefix}{pattern}{suffix}"), None);
    }
    let listed = listing(place, prefix, suffix);
    (format!("{listed} | xargs {decode}"), Some(listed))
}

/// A command that lists parts by their number, however many there are.
fn listing(place: &str, prefix: &str, suffix: &str) -> String {
    let dir = if place.is_empty() { "." } else { place.trim_end_matches('/') };
    let ending = suffix.replace('.', "\\.");
    // The first pattern takes dots as they are, the second only numbers.
    format!("find {dir} -maxdepth 1 -name '{prefix}*{suffix}' | grep -E '/{prefix}[0-9]+{ending}$' | sort -V")
}

/// What decompresses a codec's parts, and the package it is in.
fn decoder(codec: Codec) -> (&'static str, &'static str) {
    match codec {
        Codec::Zstd(_) => ("zstd -dc", "zstd"),
        Codec::Bzip2(_) => ("bzip2 -dc", "bzip2"),
        Codec::None => ("cat", "coreutils"),
    }
}

/// The directory of a member of the chain as seen from that of the last one.
fn place(chain: &[&Member<'_>], one: &Snapshot) -> String {
    match chain.last() {
        Some((last, _)) if last.run_id != one.run_id => format!("../{}/", one.run_id),
        _ => String::new(),
    }
}

/// The number of a part, as it stands in its name, when that begins with `prefix`.
fn number<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let number = name.strip_prefix(prefix)?.split('.').next()?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
}

fn list(out: &mut String, parts: &[String], prefix: &str) {
    for name in parts.iter().filter(|name| number(name, prefix).is_some()) {
        let _ = writeln!(out, "    {name}");
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;
    use crate::format::record::Record;

    const RECORD: &[u8] = include_bytes!("../../tests/data/v1/log/golden/00000000000000000001.json");

    fn snapshot() -> Snapshot {
        match Record::decode(RECORD).unwrap() {
            Record::Snapshot(snapshot) => *snapshot,
            _ => panic!("not a snapshot"),
        }
    }

    fn names(count: usize) -> Vec<String> {
        let tree = (0..count).map(|n| format!("tree-{n:05}.tar.zst"));
        tree.chain((0..count).map(|n| format!("stream-numbers-{n:05}.zst"))).collect()
    }

    #[test]
    fn only_of_very_many_parts_names_go_through_a_list() {
        let few = text(&snapshot(), &names(PATTERN_COUNT_MAX), &[]);
        assert!(few.contains("\n    zstd -dc tree-*.tar.zst | tar -x -p"), "{few:.900}");
        assert!(few.contains("\n    zstd -dc stream-numbers-?????.zst > numbers\n") && !few.contains("find"));
        let many = text(&snapshot(), &names(PATTERN_COUNT_MAX + 1), &[]);
        let tree = "find . -maxdepth 1 -name 'tree-*.tar.zst' | grep -E '/tree-[0-9]+\\.tar\\.zst$' | sort -V";
        assert!(many.contains(&format!("\n    {tree} | xargs zstd -dc | tar -x -p")), "{many:.900}");
        assert!(many.contains(&format!("`{tree} | xargs zstd -dc | bsdtar")) && !many.contains("dc tree-*"));
        let stream = "grep -E '/stream-numbers-[0-9]+\\.zst$' | sort -V | xargs zstd -dc > numbers\n";
        assert!(many.contains(stream) && !many.contains("?????"));

        // A level upon that, with deltas: the script gets one archive.
        let mut level = snapshot();
        (level.level, level.totals.deltas, level.run_id) = (1, 1, crate::model::ids::RunId::new(7).unwrap());
        let base = snapshot();
        let text = text(&level, &names(PATTERN_COUNT_MAX + 1), &[(&base, names(3))]);
        assert!(text.contains(&format!("\n    zstd -dc ../{}/tree-*.tar.zst | tar", base.run_id)), "{text:.2000}");
        let script = "    python3 -c \"$SCRIPT\" level-1.tar.zst TARGET\n    rm level-1.tar.zst\n";
        assert!(text.contains(&format!("\n    {tree} | xargs cat > level-1.tar.zst\n{script}")), "{text:.2000}");
    }

    #[test]
    fn the_list_is_in_order_and_of_one_stream_alone() {
        let dir = tempfile::tempdir().unwrap();
        let parts = ["d.b-99999", "d.b-00000", "d.b-100000", "d.b-10001", "d.b-09999", "d.b-10000", "d.b-9999999"];
        for part in parts {
            fs::write(dir.path().join(format!("stream-{part}.zst")), format!("{part}\n")).unwrap();
        }
        for other in ["d.b-2-00000.zst", "dxb-00001.zst", "d.b-00003", "d.b-00004xzst", "d.b-x.zst"] {
            fs::write(dir.path().join(format!("stream-{other}")), "another's\n").unwrap();
        }
        fs::create_dir(dir.path().join("TARGET")).unwrap();
        fs::write(dir.path().join("TARGET/stream-d.b-00002.zst"), "another's\n").unwrap();
        let run = |place: &str, within: &str| {
            let command = format!("{} | xargs cat", listing(place, "stream-d.b-", ".zst"));
            let ran = Command::new("sh").args(["-c", &command]).current_dir(dir.path().join(within)).output().unwrap();
            assert!(ran.status.success(), "{command}: {ran:?}");
            String::from_utf8(ran.stdout).unwrap()
        };
        let order = ["00000", "09999", "10000", "10001", "99999", "100000", "9999999"];
        let expected: String = order.iter().map(|n| format!("d.b-{n}\n")).collect();
        assert_eq!(run("", ""), expected);
        assert_eq!(run("../", "TARGET"), expected);
    }
}
