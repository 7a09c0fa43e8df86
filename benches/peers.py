#!/usr/bin/env python3
"""bk beside its peers on real input: whole commands, in turn, medians of the ratios pair by pair.

    benches/peers.py [--runs N] [--only NAME] [--kernel TARBALL] [--work DIR] [--svg FILE] [--mount]

Needs a release build (cargo build --release) and Debian's tar, zstd, bzip2, pbzip2, lbzip2, b3sum, and the package
linux-source-6.1 for the kernel tree; restic, borg, bupstash and rustic where they are installed. Works in a directory on tmpfs, so that disks play
no part; the page cache is warm. Prints a table as Markdown, with --svg a chart of it, too; --mount goes on with benches/mount.py.
"""

import argparse, os, random, shutil, subprocess, sys

from chart import svg
from common import BK, KERNEL, kernel, made_dump, median, real_dump, run, warm


def size(path):
    """Bytes of the files below a path."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(path) for f in files)


def pair(name, target, ours, peer, before_ours, before_peer, cwd, runs, stored):
    """Prints a row; gives the median of the ratios. `stored` are what the two of them leave, where that is compared."""
    ratios, rows = [], []
    for n in range(runs + 1):
        subprocess.run(["bash", "-c", before_ours], cwd=cwd, check=True)
        warm(cwd)
        a = run(ours, cwd)
        subprocess.run(["bash", "-c", before_peer], cwd=cwd, check=True)
        warm(cwd)
        b = run(peer, cwd)
        if n > 0:
            ratios.append(a[0] / b[0])
            rows.append((a, b))
    sizes = " / ".join(f"{size(os.path.join(cwd, path)) / 1e6:.1f} MB" for path in stored) if stored else "–"
    print(
        f"| {name} | {median(r[0][0] for r in rows):.2f} s | {median(r[1][0] for r in rows):.2f} s | "
        f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | {target} | {sizes} | {median(r[0][2] for r in rows):.0f} MiB |",
        flush=True,
    )
    return median(ratios)


# What makes an empty repository, stores a tree, and restores what was stored last; none of them encrypts where it can be had without.
STORES = {
    "restic": (
        "rm -rf r && restic -q -r r init",
        "restic -q -r r backup {tree}",
        "restic -q -r r restore latest --target out",
        {"RESTIC_PASSWORD": "x", "RESTIC_CACHE_DIR": "restic-cache"},
    ),
    "borg": (
        "rm -rf r && borg init -e none r",
        "borg create --compression zstd,3 r::'{{now:%H%M%S%f}}' {tree} 2> /dev/null",
        "cd out && borg extract ../r::$(borg list --short --last 1 ../r)",
        {"BORG_BASE_DIR": "borg-base", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"},
    ),
    "rustic": (
        "rm -rf r && rustic -r r init > /dev/null 2>&1",
        "rustic -r r backup {tree} > /dev/null 2>&1",
        "rustic -r r restore latest out > /dev/null 2>&1",
        {"RUSTIC_PASSWORD": "x", "RUSTIC_CACHE_DIR": "rustic-cache"},
    ),
    "bupstash": (
        "rm -rf r key && bupstash new-key -o key && bupstash init -r r",
        "bupstash put -q -r r -k key name=k {tree} > /dev/null",
        "bupstash get -q -r r -k key name=k | tar -C out -xf -",
        {},
    ),
}


def store_cases(tree, snap, inc, based, fresh):
    """Rows for each of the other programs that are installed."""
    for name, (init, put, get, env) in STORES.items():
        if not shutil.which(name):
            print(f"{name} is not installed: left out", file=sys.stderr)
            continue
        os.environ.update(env)
        put_inc, put = put.format(tree="inc"), put.format(tree=tree)
        has_r = f"[ -f r-{name} ] || ({init} && {put} && rm -f r-* && touch r-{name})"
        has_v = f"[ -d v/data/k ] || ({fresh} && {snap} -C {tree} .)"
        yield (f"kernel zstd:3 / {name}", "0.90" if name == "bupstash" else "–", f"{snap} -C {tree} .", put, fresh, f"rm -f r-*; {init}", ("v", "r"))
        yield (f"increment, nothing changed / {name}", "1.00", f"{inc} k --level 1", put_inc, f"{based}; rm -f r-*", f"[ -f r-inc ] || ({init} && {put_inc} && touch r-inc)", None)
        yield (f"restore zstd:3 / {name}", "0.75", f"{BK} restore -q --volume v k/latest --target out", get, f"rm -rf out; {has_v}; rm -f r-inc; {has_r}", "rm -rf out && mkdir out", None)


def edit(root, seed):
    """Edits about one file in a hundred of a tree, removes and adds some."""
    rng = random.Random(seed)
    files = sorted(os.path.join(d, f) for d, _, fs in os.walk(root) for f in fs if not os.path.islink(os.path.join(d, f)))
    rng.shuffle(files)
    for path in files[:800]:
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            file.write(b"/* edited %d */\n" % rng.randrange(10**9))
    for path in files[800:950]:
        os.unlink(path)
    for path in files[950:1100]:
        content = open(path, "rb").read()
        open(path + ".new", "wb").write(content[: len(content) // 2] + b"// added\n")


def changed_dumps(work):
    """The first half of the dump, and two changed versions of it: overwrites of 4 KiB, inserts of about 500 bytes."""
    rng = random.Random(5)
    content = bytearray(open(f"{work}/dump.sql", "rb").read(1 << 30))
    open(f"{work}/d0", "wb").write(content)
    cuts = sorted(rng.randrange(len(content)) for _ in range(200))
    with open(f"{work}/d2", "wb") as out:
        for a, b in zip([0] + cuts, cuts + [len(content)]):
            out.write(content[a:b])
            out.write(os.urandom(rng.randrange(400, 600)) if b < len(content) else b"")
    for _ in range(500):
        at = rng.randrange(len(content) - 4096)
        content[at : at + 4096] = os.urandom(4096)
    open(f"{work}/d1", "wb").write(content)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="parts of names, with commas")
    parser.add_argument("--kernel", default=KERNEL)
    parser.add_argument("--work", default="/dev/shm/bk-peers")
    parser.add_argument("--svg", help="write a chart of the ratios")
    parser.add_argument("--mount", action="store_true", help="then the mount beside squashfs, as root")
    parser.add_argument("--edit", nargs=2, metavar=("DIR", "SEED"), help="only edit one percent of a tree")
    args = parser.parse_args()
    if args.edit:
        return edit(args.edit[0], int(args.edit[1]))
    work = args.work
    os.makedirs(work, exist_ok=True)
    if (not args.only or "pg_dump" in args.only) and not os.path.exists(f"{work}/pg.sql"):
        if not real_dump(f"{work}/pg.sql", work):
            print("PostgreSQL is missing, or this is not root: the pg_dump row is left out, the made one stands for it", file=sys.stderr)
    tree = kernel(work, args.kernel)
    wants_all = not args.only
    if (wants_all or "dump" in args.only or "stream" in args.only) and not os.path.exists(f"{work}/dump.sql"):
        made_dump(f"{work}/dump.sql", 2 << 30)
    if (wants_all or "noise" in args.only) and not os.path.exists(f"{work}/noise"):
        subprocess.run(["dd", "if=/dev/urandom", f"of={work}/noise", "bs=1M", "count=2048", "status=none"], check=True)

    fresh = f"rm -rf v && {BK} volume create -q v"
    snap = f"{BK} snapshot -q --volume v --job k"
    tar = f"tar -C {tree} -cf - ."
    inc = f"{BK} snapshot -q --volume vi -C inc . --job"
    based = f"[ -d vi ] || ({BK} volume create -q vi && cp -a {tree} inc && sleep 3 && {inc} k --level 0 && tar -g snar -cf /dev/null inc)"
    edited = f"{based}; [ -f edited ] || (python3 {os.path.abspath(__file__)} --edit inc 1 && touch edited)"
    # Levels 1 to 9, one percent edited before each, and a level 0 of what came out.
    levels = "; ".join(f"python3 {os.path.abspath(__file__)} --edit inc {n}; {inc} k --level {n}" for n in range(2, 10))
    chained = f"{edited}; [ -d vi/data/f ] || ({inc} k --level 1; {levels}; {inc} f --level 0)"
    if "stream" in args.only or not args.only:
        os.path.exists(f"{work}/d2") or changed_dumps(work)
    streamed = f"rm -rf vd && {BK} volume create -q vd && {BK} snapshot -q --volume vd --job d --level 0 --stdin dump < d0"
    cases = [
        ("kernel zstd:3 / tar, zstd -T2 -3", "0.60", f"{snap} -C {tree} .", f"{tar} | zstd -T2 -3 -q -f -o peer.zst", fresh, "rm -f peer.zst", ("v", "peer.zst")),
        ("dump 2 GiB / zstd -T2 -3", "0.65", f"{snap} --stdin dump < dump.sql", "zstd -T2 -3 -q -f -o peer.zst < dump.sql", fresh, "rm -f peer.zst"),
        ("pg_dump of pgbench / zstd -T2 -3", "0.65", f"{snap} --stdin dump < pg.sql", "zstd -T2 -3 -q -f -o peer.zst < pg.sql", fresh, "rm -f peer.zst"),
        ("noise 2 GiB / cp, b3sum", "1.25", f"{snap} --stdin noise < noise", "cp noise copy && b3sum --num-threads 1 copy > /dev/null", fresh, "rm -f copy peer.zst"),
        ("kernel bzip2:9 / tar, pbzip2 -p2 -9", "1.00", f"{snap} --compression bzip2:9 -C {tree} .", f"{tar} | pbzip2 -p2 -9 -c > peer.bz2", fresh, "rm -f peer.bz2 copy"),
        ("kernel bzip2:9 / tar, bzip2 -9", "0.55", f"{snap} --compression bzip2:9 -C {tree} .", f"{tar} | bzip2 -9 > peer.bz2", fresh, "rm -f peer.bz2"),
        ("kernel bzip2:9 / tar, lbzip2 -n2 -9", "–", f"{snap} --compression bzip2:9 -C {tree} .", f"{tar} | lbzip2 -n2 -9 > peer.bz2", fresh, "rm -f peer.bz2"),
        ("restore zstd:3 / zstd -dc, tar x", "0.75", f"{BK} restore -q --volume v k/latest --target out", "zstd -dc peer.zst | tar -C out -xf -", f"rm -rf out; [ -f peer.zst ] || {tar} | zstd -T2 -3 -q -o peer.zst; [ -d v/data/z ] || ({fresh} && {snap} -C {tree} . && mkdir v/data/z)", "rm -rf out && mkdir out"),
        ("restore bzip2:9 / bzip2 -dc, tar x", "0.55", f"{BK} restore -q --volume v k/latest --target out", "bzip2 -dc peer.bz2 | tar -C out -xf -", f"rm -rf out; [ -f peer.bz2 ] || {tar} | lbzip2 -n2 -9 > peer.bz2; [ -d v/data/b ] || ({fresh} && {snap} --compression bzip2:9 -C {tree} . && mkdir v/data/b)", "rm -rf out && mkdir out"),
    ]
    cases += [
        ("increment, nothing changed / tar -g", "1.00", f"{inc} k --level 1", "tar -g snar1 -cf l1.tar inc", based, "cp snar snar1"),
        ("increment, 1 % edited / tar -g, zstd -T2 -3", "1.00", f"{inc} k --level 1", "tar -g snar1 -cf - inc | zstd -T2 -3 -q -f -o l1.zst", edited, "cp snar snar1"),
        ("increment, restore level 9 / the equal level 0", "1.30", f"{BK} restore -q --volume vi k/latest --target out", f"{BK} restore -q --volume vi f/latest --target out", f"{chained}; rm -rf out", "rm -rf out"),
        ("increment, export level 1 / export level 0", "–", f"{BK} export -q --volume vi k/2 > l1.tar", f"{BK} export -q --volume vi k/1 > l0.tar", f"{edited}; [ -d vi/data/f ] || {inc} k --level 1; rm -f l1.tar", "rm -f l0.tar"),
        ("stream 1 GiB, 500 overwrites, level 1 / zstd -T2 -3", "–", f"{BK} snapshot -q --volume vd --job d --level 1 --stdin dump < d1", "zstd -T2 -3 -q -f -o peer.zst < d1", streamed, "rm -f peer.zst"),
        ("stream 1 GiB, 200 inserts, level 1 / zstd -T2 -3", "–", f"{BK} snapshot -q --volume vd --job d --level 1 --stdin dump < d2", "zstd -T2 -3 -q -f -o peer.zst < d2", streamed, "rm -f peer.zst"),
    ]
    cases += list(store_cases(tree, snap, inc, based, fresh))
    print("| what / peer | bk | peer | ratio, median (min–max) | goal | stored, bk / peer | bk peak memory |\n|---|---|---|---|---|---|---|")
    chart = []
    for name, target, ours, peer, before_ours, before_peer, *stored in cases:
        if "pg_dump" in name and not os.path.exists(f"{work}/pg.sql"):
            continue
        if any(only in name for only in args.only.split(",")):
            runs = args.runs if "bzip2" not in name else min(args.runs, 3)
            ratio = pair(name, target, ours, peer, before_ours, before_peer, work, runs, stored[0] if stored else None)
            chart.append((name, ratio, None if target == "–" else float(target)))
    if args.svg:
        with open(args.svg, "w") as out:
            out.write(svg("Time of bk by its peer's, median; the green marks are goals", chart))
    if args.mount:
        subprocess.run([os.path.join(os.path.dirname(os.path.abspath(__file__)), "mount.py"), "--runs", str(args.runs)], check=True)
    shutil.rmtree(f"{work}/out", ignore_errors=True)


if __name__ == "__main__":
    main()
