//! The odd ends of a tree: names, extended attributes and ACLs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use rustix::fs::XattrFlags;

use super::{Maker, set};
use crate::support::is_root;

/// A file and its extended attributes.
type Attributes<'a> = (&'a str, &'a [(&'a str, &'a [u8])]);

impl Maker {
    pub(super) fn odd_names(&mut self) {
        let dir = self.dir("names");
        let long = "n".repeat(255);
        let wide = "é".repeat(127);
        for name in [
            long.as_str(),
            wide.as_str(),
            "new\nline",
            "esc\u{1b}[31mred",
            "bidi\u{202e}gnp.exe",
            "quo\"te's`",
            "-rf",
            "--help",
            "trailing ",
            " leading",
            "back\\slash",
            "\\012",
            "*?[x]{a,b}",
            "!not",
            "#hash",
            "a=b%c",
            "...",
            "..x",
            "tab\there",
            "\u{1}",
            "~",
            "日本語",
            "e\u{301}",
            "dot.",
            "Case",
            "case",
            ".hidden",
            "x:y",
            "@at",
            "$(id)",
            "ends\n",
        ] {
            self.file(&dir.join(name), 30);
        }
        // Just around what the name and prefix fields of ustar hold.
        for (dir_len, name_len) in [(98, 1), (50, 48), (155, 100), (154, 100), (155, 101), (156, 99), (200, 100)] {
            let path = self.dir(&format!("names/{}", "p".repeat(dir_len)));
            self.file(&path.join("q".repeat(name_len)), 9);
        }
        let sub = dir.join("dir\nwith line");
        fs::create_dir(&sub).unwrap();
        self.file(&sub.join("-"), 4);
        self.dirs.push(sub);
    }

    pub(super) fn raw_names(&mut self) {
        let dir = self.dir("raw");
        for name in [&b"caf\xe9"[..], b"\xff", b"\xed\xa0\x80", b"ok-\xc3\xa9-\x80", &[0xfe; 255]] {
            self.file(&dir.join(OsStr::from_bytes(name)), 25);
        }
        let sub = dir.join(OsStr::from_bytes(b"dir-\xc0\xaf"));
        fs::create_dir(&sub).unwrap();
        self.file(&sub.join("inside"), 8);
        fs::hard_link(sub.join("inside"), dir.join("hard-to-raw")).unwrap();
        self.dirs.push(sub);
    }

    pub(super) fn xattrs(&mut self) {
        let dir = self.dir("xattr");
        let blob = self.rng.noise(2000);
        let sets: [Attributes<'_>; 4] = [
            ("user", &[("user.note", b"hello"), ("user.lines", b"a\nb\0c\n"), ("user.b", b"=")]),
            ("empty-value", &[("user.none", b"")]),
            ("big", &[("user.blob", &blob)]),
            ("trusted", &[("trusted.bk", b"\x00\xff"), ("user.x", b"1")]),
        ];
        for (name, attributes) in sets {
            let path = dir.join(name);
            self.file(&path, 40);
            for (key, value) in attributes {
                set(&path, key, value);
            }
            self.stamp(&path);
        }
        let on_dir = self.dir("xattr/on-dir");
        set(&on_dir, "user.dir", b"yes");
        symlink("user", dir.join("link")).unwrap();
        if is_root() {
            let _ = rustix::fs::lsetxattr(dir.join("link"), "trusted.link", b"l", XattrFlags::empty());
        }
        self.stamp(&dir.join("link"));
        // cap_net_raw+ep, revision 2 of the kernel's vfs_cap_data.
        let mut capability = vec![1, 0, 0, 2];
        capability.extend([0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        self.file(&dir.join("capable"), 100);
        set(&dir.join("capable"), "security.capability", &capability);
        fs::hard_link(dir.join("user"), dir.join("user-linked")).unwrap();
    }

    pub(super) fn odd_xattrs(&mut self) {
        let dir = self.dir("xattr-odd");
        self.file(&dir.join("odd"), 40);
        for key in ["user.a=b", "user.50%", "user.%3D", "user.sp ace", "user.caf\u{e9}"] {
            set(&dir.join("odd"), key, b"v=1");
        }
    }

    pub(super) fn acls(&mut self) {
        let dir = self.dir("acl");
        self.file(&dir.join("granted"), 12);
        let user = |id: u32, perm: u16| (2u16, perm, id);
        let none = u32::MAX;
        let access = acl(&[
            (1, 6, none),
            user(5, 4),
            user(3_000_000, 7),
            (4, 4, none),
            (8, 5, 77),
            (16, 7, none),
            (32, 0, none),
        ]);
        set(&dir.join("granted"), "system.posix_acl_access", &access);
        let inherits = self.dir("acl/inherits");
        self.file(&inherits.join("before-default"), 5);
        fs::create_dir(inherits.join("sub")).unwrap();
        self.dirs.push(inherits.join("sub"));
        let default = acl(&[(1, 7, none), user(6, 5), (4, 5, none), (16, 5, none), (32, 1, none)]);
        set(&inherits, "system.posix_acl_default", &default);
        let both = self.dir("acl/both");
        set(&both, "system.posix_acl_default", &default);
        set(&both, "system.posix_acl_access", &access);
        self.file(&both.join("with-inherited"), 5);
    }
}

/// The kernel's binary form of an ACL: version 2, then (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
