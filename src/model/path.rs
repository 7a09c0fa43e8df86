//! Paths inside a snapshot: bytes, relative, components joined by `/`, `""` for the root of the tree.

use std::cmp::Ordering;

/// Longest path bk stores, bytes; one less than Linux's `PATH_MAX`.
pub const PATH_LEN_MAX: usize = 4095;
/// Longest name of one component, bytes (Linux's `NAME_MAX`).
pub const NAME_LEN_MAX: usize = 255;

/// Whether `path` is one bk writes: relative, no empty, `.` or `..` component, no NUL, lengths in bounds.
/// The empty path (the root) is valid. Whatever comes out of a volume is held against this.
pub fn is_valid(path: &[u8]) -> bool {
    path.is_empty()
        || path.len() <= PATH_LEN_MAX
            && path
                .split(|&b| b == b'/')
                .all(|name| !matches!(name, b"" | b"." | b"..") && name.len() <= NAME_LEN_MAX && !name.contains(&0))
}

/// Splits into (directory, name): `a/b/c` gives (`a/b`, `c`), `a` gives (``, `a`).
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// `dir/name`, or `name` in the root.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + name.len() + 1);
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Whether `path` is `dir` or lies below it.
pub fn is_within(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Orders directories depth first, siblings by the bytes of their names: `a` < `a/z` < `a.b`.
pub fn cmp_dirs(a: &[u8], b: &[u8]) -> Ordering {
    let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    match (a.get(same), b.get(same)) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(b'/'), Some(_)) => Ordering::Less,
        (Some(_), Some(b'/')) => Ordering::Greater,
        (Some(x), Some(y)) => x.cmp(y),
    }
}

/// The order of the index: directory by directory ([`cmp_dirs`]), names sorted by their bytes within each;
/// the root itself comes first.
pub fn cmp_rows(a: &[u8], b: &[u8]) -> Ordering {
    match (a.is_empty(), b.is_empty()) {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Less,
        (false, true) => return Ordering::Greater,
        (false, false) => {}
    }
    let ((dir_a, name_a), (dir_b, name_b)) = (split(a), split(b));
    cmp_dirs(dir_a, dir_b).then_with(|| name_a.cmp(name_b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_directory_by_directory() {
        let sorted: [&[u8]; 9] = [b"", b"a", b"a.b", b"b", b"a/c", b"a/c.d", b"a/c/x", b"a.b/y", b"b/z"];
        for (i, x) in sorted.iter().enumerate() {
            for (j, y) in sorted.iter().enumerate() {
                assert_eq!(cmp_rows(x, y), i.cmp(&j), "{:?} {:?}", x.escape_ascii(), y.escape_ascii());
            }
        }
    }

    #[test]
    fn hostile_paths_are_not_valid() {
        for bad in ["/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b"] {
            assert!(!is_valid(bad.as_bytes()), "{bad:?}");
        }
        assert!(!is_valid(&[b'x'; 256]));
        assert!(is_valid(b"") && is_valid(b"a/b c/\xff..") && is_valid(&[b'x'; 255]));
    }
}
