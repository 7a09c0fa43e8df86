//! Who may do what: owners, modes and access lists hold for every user, and nobody can write.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::{Mount, can_mount};
use crate::support::tools::{copy_program, need, shell, skip};
use crate::support::tree::chmod;
use crate::support::{BK, World};

const OTHER: u32 = 65534;

/// Whether another user can do what a line of shell says.
fn other_can(line: &str, path: &Path) -> bool {
    let line = format!("exec setpriv --reuid={OTHER} --regid={OTHER} --clear-groups {line} >/dev/null 2>&1");
    shell(&line, &[path]).status.success()
}

/// Lets others come to the world's directory at all.
fn open_world(world: &World) {
    chmod(world.src.parent().unwrap(), 0o755);
}

#[test]
fn modes_owners_and_access_lists_hold() {
    let me = "modes_owners_and_access_lists_hold";
    if !can_mount(me) || !need(me, &["setpriv", "setfacl"]) {
        return;
    }
    let world = World::new("mount");
    open_world(&world);
    let file = |name: &str, mode: u32, uid: u32, gid: u32| {
        let path = world.src.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "#!/bin/sh\necho ran\n").unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        chmod(&path, mode);
    };
    for mode in [0o000, 0o400, 0o600, 0o640, 0o604, 0o644, 0o040, 0o755] {
        file(&format!("root-{mode:03o}"), mode, 0, 0);
        file(&format!("own-{mode:03o}"), mode, OTHER, 0);
        file(&format!("group-{mode:03o}"), mode, 0, OTHER);
        for dir in [0o700, 0o711, 0o755, 0o050] {
            file(&format!("dir-{dir:03o}/{mode:03o}"), mode, 0, 0);
            chmod(&world.src.join(format!("dir-{dir:03o}")), dir);
        }
    }
    for name in ["acl-file", "acl-dir/in"] {
        file(name, 0o600, 0, 0);
    }
    chmod(&world.src.join("acl-dir"), 0o700);
    let set = shell(
        &format!("setfacl -m u:{OTHER}:r \"$1/acl-file\" \"$1/acl-dir/in\" && setfacl -m u:{OTHER}:rx \"$1/acl-dir\""),
        &[&world.src],
    );
    if !set.status.success() {
        skip("modes_owners_and_access_lists_hold (access lists)", "this file system has none");
    }
    chmod(&world.src, 0o755);
    world.snapshot("tree", "").ok();
    let shared = Mount::new(&world, "shared", "--allow-other tree/1");
    let mut allowed = 0;
    for path in crate::support::files_below(&world.src) {
        let shown = shared.at.join(path.strip_prefix(&world.src).unwrap());
        for line in ["cat \"$1\"", "stat \"$1\"", "test -x \"$1\"", "ls \"$(dirname \"$1\")\""] {
            let (there, here) = (other_can(line, &path), other_can(line, &shown));
            // What may be run there may not be run here.
            let expected = there && !line.contains("-x");
            assert_eq!(here, expected, "{line} {}", path.display());
            allowed += usize::from(here);
        }
    }
    assert!(allowed > 20, "only {allowed} were allowed");
    // Without it only the owner of the mount comes in, and nobody else even sees it.
    let own = Mount::new(&world, "own", "tree/1");
    assert!(own.path("root-644").exists() && !other_can("ls \"$1\"", &own.at));
    assert!(!other_can("cat \"$1\"", &own.path("root-644")));
}

#[test]
fn a_snapshot_that_could_not_be_looked_at_is_open_to_nobody() {
    let me = "a_snapshot_that_could_not_be_looked_at_is_open_to_nobody";
    if !can_mount(me) || !need(me, &["setpriv"]) {
        return;
    }
    let world = World::new("mount");
    open_world(&world);
    fs::write(world.src.join("secret"), "secret").unwrap();
    chmod(&world.src.join("secret"), 0o644);
    chmod(&world.src, 0o700);
    world.snapshot("tree", "").ok();
    // Else its index may be at hand.
    let _ = fs::remove_dir_all(world.path("cache"));
    let mount = Mount::new(&world, "mnt", "--allow-other");
    let (data, away) = (world.volume.join("data"), world.volume.join("away"));
    fs::rename(&data, &away).unwrap();
    let shown = crate::support::sorted(&mount.path("tree"));
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert_eq!(fs::read_dir(&shown[0]).unwrap_err().raw_os_error(), Some(5));
    assert!(!other_can("ls \"$1\"", &shown[0]) && !other_can("cat \"$1/secret\"", &shown[0]));
    fs::rename(&away, &data).unwrap();
    // As it was stored, at once.
    assert_eq!(shown[0].metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::read(shown[0].join("secret")).unwrap(), b"secret");
    assert!(!other_can("ls \"$1\"", &shown[0]) && !other_can("cat \"$1/secret\"", &shown[0]));
    mount.end().ok();
}

#[test]
fn programs_run_only_when_that_is_allowed_and_setuid_never_counts() {
    if !can_mount("programs_run_only_when_that_is_allowed_and_setuid_never_counts") {
        return;
    }
    let world = World::new("mount");
    let program = world.src.join("run");
    fs::copy("/bin/true", &program).unwrap();
    chmod(&program, 0o4755);
    world.snapshot("tree", "").ok();
    for (words, runs) in [("tree/1", false), ("--allow-exec tree/1", true)] {
        let one = Mount::new(&world, "one", words);
        assert_eq!(std::process::Command::new(one.path("run")).status().is_ok_and(|s| s.success()), runs, "{words}");
        assert_eq!(one.path("run").metadata().unwrap().permissions().mode() & 0o7777, 0o4755);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.contains(one.at.to_str().unwrap())).unwrap();
        for option in ["ro", "nodev", "nosuid", "default_permissions"] {
            assert!(line.split([' ', ',']).any(|word| word == option), "{option} is not in {line}");
        }
        assert_eq!(line.contains("noexec"), !runs, "{line}");
        assert!(!line.contains("allow_other"), "{line}");
        one.end().ok();
    }
}

#[test]
fn whatever_would_write_is_refused() {
    if !can_mount("whatever_would_write_is_refused") {
        return;
    }
    let world = World::new("mount");
    fs::create_dir(world.src.join("dir")).unwrap();
    fs::write(world.src.join("file"), "content").unwrap();
    fs::write(world.src.join("dir/in"), "content").unwrap();
    world.snapshot("tree", "").ok();
    let all = Mount::new(&world, "all", "");
    let one = Mount::new(&world, "one", "tree/1");
    for root in [all.path("tree/latest/"), one.at.clone(), all.path("tree"), all.at.clone()] {
        refuses_writes(&root);
    }
    for at in [&one.at, &all.at] {
        let stat = rustix::fs::statvfs(at).unwrap();
        assert!(stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        assert_eq!((stat.f_bavail, stat.f_namemax), (0, 255));
    }
    // Mounted again for writing, against bk's will, it refuses by itself.
    let line = r#"mount -o remount,rw "$1""#;
    if !shell(line, &[&one.at]).status.success() {
        skip("whatever_would_write_is_refused (mounted again for writing)", "the kernel does not let us");
        return;
    }
    refuses_writes(&one.at);
    assert!(one.count("refused") >= 8, "{}", one.count("refused"));
}

fn refuses_writes(root: &Path) {
    let at = |name: &str| root.join(name);
    let mode = Mode::from_raw_mode(0o644);
    let there = if at("file").exists() { at("file") } else { root.to_owned() };
    let new = at("new");
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    let mut results = vec![
        ("create", rustix::fs::openat(CWD, &new, OFlags::CREATE | OFlags::WRONLY, mode).map(drop)),
        ("mkdir", rustix::fs::mkdir(&new, mode)),
        ("mkfifo", rustix::fs::mknodat(CWD, &new, rustix::fs::FileType::Fifo, mode, 0)),
        ("symlink", rustix::fs::symlink("x", &new)),
        ("chmod", rustix::fs::chmodat(CWD, &there, mode, AtFlags::empty())),
        ("chown", rustix::fs::chownat(CWD, &there, Some(rustix::fs::Uid::from_raw(5)), None, AtFlags::empty())),
        ("utimes", rustix::fs::utimensat(CWD, &there, &times, AtFlags::empty())),
        ("setxattr", rustix::fs::setxattr(&there, "user.x", b"v", XattrFlags::empty())),
        ("removexattr", rustix::fs::removexattr(&there, "user.x")),
    ];
    if there.is_file() {
        results.extend([
            ("link", rustix::fs::linkat(CWD, &there, CWD, &new, AtFlags::empty())),
            ("rename", rustix::fs::rename(&there, &new)),
            ("unlink", rustix::fs::unlink(&there)),
            ("rmdir", rustix::fs::rmdir(at("dir"))),
            ("truncate", rustix::fs::openat(CWD, &there, OFlags::WRONLY | OFlags::TRUNC, mode).map(drop)),
            ("write", {
                let open = rustix::fs::openat(CWD, &there, OFlags::RDWR, mode);
                open.and_then(|fd| rustix::io::pwrite(&fd, b"x", 0).and_then(|_| rustix::fs::fsync(&fd)))
            }),
        ]);
    }
    for (what, result) in results {
        assert_eq!(result, Err(Errno::ROFS), "{what} in {}", root.display());
    }
    if there.is_file() {
        assert_eq!(fs::read(&there).unwrap(), b"content");
    }
}

/// `/dev/fuse` as udev makes it, for everybody, as long as this lives.
struct OpenDevice(u32);

impl OpenDevice {
    fn new() -> Self {
        let mode = fs::metadata("/dev/fuse").unwrap().permissions().mode();
        chmod(Path::new("/dev/fuse"), 0o666);
        Self(mode & 0o7777)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        chmod(Path::new("/dev/fuse"), self.0);
    }
}

#[test]
fn a_user_mounts_for_himself() {
    let me = "a_user_mounts_for_himself";
    if !can_mount(me) || !need(me, &["fusermount3", "setpriv"]) {
        return;
    }
    let world = World::new("mount");
    let _device = OpenDevice::new();
    if world.server.is_some() {
        skip(me, "the volume is on S3");
        return;
    }
    open_world(&world);
    fs::write(world.src.join("file"), "content").unwrap();
    world.snapshot("tree", "").ok();
    let at = world.path("mnt");
    fs::create_dir(&at).unwrap();
    // A copy that he can run, wherever the tests were built; a volume and a mount point of his own.
    let program = world.path("bk");
    copy_program(BK, &program);
    let his = |path: &Path| chown(path, Some(OTHER), Some(OTHER)).unwrap();
    let mut paths: Vec<PathBuf> = crate::support::files_below(&world.volume);
    let dirs: Vec<PathBuf> = paths.iter().flat_map(|p| p.ancestors().skip(1).map(Path::to_owned)).collect();
    paths.extend(dirs.into_iter().filter(|dir| dir.starts_with(&world.volume)));
    paths.iter().for_each(|path| his(path));
    his(&at);
    let line = format!("setpriv --reuid={OTHER} --regid={OTHER} --clear-groups");
    let instead = format!("shift; exec {} \"$@\"", program.display());
    let mut under: Vec<&OsStr> = line.split(' ').map(OsStr::new).collect();
    under.extend(["sh", "-c", &instead, "sh"].map(OsStr::new));
    let shown = Mount::by(world.bk_under(&under, "mount --json").arg(&at), &at);
    let cat = |path: &Path| {
        let script = format!("{line} cat {}/tree/latest/file", path.display());
        String::from_utf8_lossy(&shell(&script, &[]).stdout).into_owned()
    };
    assert_eq!(cat(&at), "content");
    // Root is another user here.
    assert!(fs::read_dir(&at).is_err());
    let ran = shell(&format!("{line} {} umount {}", program.display(), at.display()), &[]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    super::wait_for("the mount to go", || !super::is_mounted(&at));
    drop(shown);
}
