#!/usr/bin/env python3
"""Applies one level (1 to 9) of a bk snapshot with GNU tar. Run it as root, once for each level, in their order.

    apply-level.py PART... TARGET               a tree: TARGET holds the tree of the base, as it was restored
    apply-level.py --stream OLD NEW < LEVEL     a stream: NEW is made of OLD and the plain level; OLD stays

When it stops, remove the cause it names and give the same command again: it goes on where it was.
"""
import json, os, shutil, subprocess, sys, tarfile
from decimal import Decimal
from urllib.parse import unquote_to_bytes

TAR = ["tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-f", "-"]
DECODE = {".zst": ["zstd", "-dc"], ".bz2": ["bzip2", "-dc"], ".tar": ["cat"]}

def need(truth, why):
    if not truth:
        raise ValueError(why)

def deltas(file):
    """The text of each delta in `file`, as a dictionary; its new bytes come next and are for build()."""
    for first in iter(file.readline, b""):
        need(first == b"bk-delta 1\n", "this is no level of bk, or of a newer version")
        text = {b"lines": []}
        for line in iter(file.readline, b"\n"):
            need(line.endswith(b"\n"), "a delta is cut short")
            word, *values = line.split()
            if word in (b"copy", b"data"):
                text[b"lines"].append((word, *map(int, values)))
            else:  # path, size, old, link
                text[word] = int(values[0]) if word == b"size" else unquote_to_bytes(values[0])
                need(word == b"size" or b".." not in text[word].split(b"/") and text[word][:1] != b"/", "a path leads out")
        yield text

def build(text, file, old, new):
    """Writes what one delta says of `new`: pieces of `old`, and the bytes that come next in `file`."""
    new.truncate(text[b"size"])
    for word, at, length, *start in text[b"lines"]:
        source = old if word == b"copy" else file
        if word == b"copy":
            old.seek(*start)
        new.seek(at)
        while length:
            piece = source.read(min(length, 1 << 20))
            need(piece, "an old version is too short: it is not the base's" if source is old else "a delta is cut short")
            length -= new.write(piece)

def archive(parts, use):
    """Hands the plain archive to `use`."""
    decode = DECODE.get(os.path.splitext(parts[0])[1])
    need(decode, f"{parts[0]} is not named as a part of a tree")
    with subprocess.Popen([*decode, *parts], stdout=subprocess.PIPE) as plain:
        result = use(plain.stdout)
        while plain.stdout.read(1 << 20):
            pass
    need(plain.returncode == 0, "the parts cannot be read")
    return result

def tar(parts, *more):
    code = archive(parts, lambda plain: subprocess.run([*TAR, *more], stdin=plain).returncode)
    need(code == 0, f"tar ended with {code} (what this system lacks can be left out: export TAR_OPTIONS=--no-acls)")

def look(plain):
    """Each directory in the archive with its time and its attributes' names; whether there are deltas."""
    dirs, any_delta = {}, False
    with tarfile.open(fileobj=plain, mode="r|", encoding="utf-8", errors="surrogateescape") as members:
        for member in members:
            members.members = []  # tarfile would keep them all
            any_delta |= member.name.startswith(".bk/delta/")
            if member.type in (tarfile.DIRTYPE, b"D"):
                names = {unquote_to_bytes(key[13:]) for key in member.pax_headers if key.startswith("SCHILY.xattr.")}
                time = Decimal(member.pax_headers.get("mtime", member.mtime))
                path = os.path.normpath(member.name.encode("utf-8", "surrogateescape"))
                dirs[path] = int(time * 10**9), names
    return dirs, any_delta

def tree(parts, target):
    parts = [os.path.abspath(part) for part in parts]
    os.chdir(target)
    dirs, any_delta = archive(parts, look)
    resumed = os.path.exists(".bk/ready")
    sizes = [os.path.getsize(part) for part in parts]
    root_time, begun = json.load(open(".bk/ready")) if resumed else (os.stat(".").st_mtime_ns, sizes)
    need(begun == sizes, "another level was begun here and is to be ended first")
    if not resumed:  # until `ready` is there, all that changes in TARGET is .bk
        shutil.rmtree(".bk", ignore_errors=True)
    for name in (".bk/new", ".bk/delta"):
        os.makedirs(name, exist_ok=True)
    if any_delta and not resumed:
        tar(parts, "--wildcards", ".bk/delta/*")
    made, links = {}, []
    for name in sorted(os.listdir(b".bk/delta"), key=int):
        with open(b".bk/delta/" + name, "rb") as file:
            text = next(deltas(file))
            if b"link" in text:
                links.append((text[b"path"], text[b"link"]))
                continue
            new_name = made.setdefault(text[b"path"], b".bk/new/" + name)  # a file may have several deltas
            if not resumed:
                with open(text[b"old"], "rb") as old, open(new_name, "ab"), open(new_name, "r+b") as new:
                    build(text, file, old, new)
                os.chown(new_name, os.fstat(file.fileno()).st_uid, os.fstat(file.fileno()).st_gid)
                shutil.copystat(file.name, new_name)
    if not resumed:
        os.sync()
        with open(".bk/built", "w") as built:
            json.dump([root_time, sizes], built)
        os.sync()
        os.rename(".bk/built", ".bk/ready")
        os.sync()
    tar(parts, "-G", "--anchored", "--exclude=.bk")
    for path, new_name in made.items():
        if os.path.lexists(new_name):  # else it is there since the last attempt
            os.rename(new_name, path)
    for path, first in links:
        if os.path.lexists(path):
            os.unlink(path)
        os.link(first, path, follow_symlinks=False)
    for path, (_, names) in dirs.items():
        for name in map(os.fsencode, os.listxattr(path)):
            if name.startswith((b"user.", b"trusted.")) and name not in names:  # tar only adds
                os.removexattr(path, name)
    for path, (time, _) in dirs.items():
        os.utime(path, ns=(time, time))
    os.sync()
    shutil.rmtree(".bk/new")
    shutil.rmtree(".bk/delta")
    os.remove(".bk/ready")
    os.rmdir(".bk")
    root_time, _ = dirs.get(b".", (root_time, None))
    os.utime(".", ns=(root_time, root_time))

def stream(old, new):
    need(not os.path.exists(new), f"{new} exists already")
    with open(old, "rb") as source, open(new + ".part", "wb") as made:
        for text in deltas(sys.stdin.buffer):
            build(text, sys.stdin.buffer, source, made)
    os.rename(new + ".part", new)

if __name__ == "__main__":
    try:
        if len(sys.argv) < 3 or len(sys.argv) != 4 and sys.argv[1] == "--stream":
            sys.exit(__doc__)
        stream(*sys.argv[2:]) if sys.argv[1] == "--stream" else tree(sys.argv[1:-1], sys.argv[-1])
    except (ValueError, KeyError, OSError, tarfile.TarError, KeyboardInterrupt) as e:
        half = sys.argv[1] != "--stream" and os.path.exists(".bk/ready")
        print(f"apply-level.py: {str(e) or 'interrupted'}", file=sys.stderr)
        sys.exit("TARGET is between two levels: remove the cause and give the same command again" if half else
                 "nothing was changed (what is in TARGET/.bk is removed the next time): remove the cause and try again")
