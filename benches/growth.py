#!/usr/bin/env python3
"""How the cost of bk grows: with entries, bytes, threads, the depth of a chain, and snapshots in a volume.

    benches/growth.py [--only entries,bytes,threads,depth,snapshots] [--runs N] [--work DIR] [--entries N,…] [--gib N,…]

Needs a release build, and Debian's linux-source-6.1 for threads and depth. Works on tmpfs, where the largest sizes need room and inodes; a size for
which there is none is left out and told. Prints a table as Markdown for each; times are medians.
"""

import argparse, os, shutil, subprocess, sys

from common import BK, kernel, made_dump, median, run, sh

SNAP = f"{BK} snapshot -q --volume v"
FRESH = f"rm -rf v && {BK} volume create -q v"


def timed(command, cwd, runs, before="true"):
    """Medians of wall seconds, processor seconds, and peak memory in MiB."""
    found = []
    for _ in range(runs):
        sh(before, cwd=cwd)
        found.append(run(command, cwd))
    return [median(column) for column in zip(*found)]


def stored(cwd, job, pattern):
    return int(subprocess.check_output(["bash", "-c", f"find v/data/{job} -name '{pattern}' -printf '%s\\n' | awk '{{n += $1}} END {{print n + 0}}'"], cwd=cwd))


def grow_tree(root, count, of):
    """Adds files to a tree up to `of`, a thousand a directory; one in ten has a few bytes."""
    for n in range(count, of):
        at = f"{root}/{n // 100_000}/{n // 1000 % 100}"
        if n % 1000 == 0:
            os.makedirs(at, exist_ok=True)
        fd = os.open(f"{at}/file-{n}.txt", os.O_CREAT | os.O_WRONLY, 0o644)
        if n % 10 == 0:
            os.write(fd, b"%d\n" % (n * 7919))
        os.close(fd)


def entries(work, args):
    print("\n| entries | level 0 | an entry | nothing changed, level 1 | an entry | peak memory, level 0 and 1 | index, an entry |\n|---|---|---|---|---|---|---|")
    tree, count = f"{work}/tree", 0
    os.makedirs(tree, exist_ok=True)
    for of in sorted(args.entries):
        room = os.statvfs(work)
        if room.f_favail < (of - count) * 1.01 + 1000 or room.f_bavail * room.f_frsize < (of - count) * 600:
            print(f"{of} entries are left out: {room.f_favail} inodes are free", file=sys.stderr)
            continue
        grow_tree(tree, count, of)
        count = of
        # Without a look inside only what has not just been changed is known.
        sh("sleep 3")
        whole = timed(f"{SNAP} --job g --level 0 -C tree .", work, args.runs, FRESH)
        index = stored(work, "g", "*.bki")
        same = timed(f"{SNAP} --job g --level 1 -C tree .", work, args.runs)
        each = lambda seconds: f"{seconds / of * 1e6:.1f} µs"
        print(f"| {of:,} | {whole[0]:.2f} s | {each(whole[0])} | {same[0]:.2f} s | {each(same[0])} | {whole[2]:.0f} and {same[2]:.1f} MiB | {index / of:.1f} B |", flush=True)
    shutil.rmtree(tree)


def bytes_(work, args):
    print("\n| bytes | snapshot | a GiB | `bk cat >/dev/null` | a GiB | peak memory, both |\n|---|---|---|---|---|---|")
    made_dump(f"{work}/dump", 64 << 20)
    for gib in sorted(args.gib):
        # The same 64 MiB again and again: a level 0 looks for no chunk it has seen.
        size = int(gib * (1 << 30))
        feed = f"while cat dump; do :; done 2>/dev/null | head -c {size}"
        snap = timed(f"({feed}) | {SNAP} --job b --level 0 --stdin d", work, args.runs, FRESH)
        read = timed(f"{BK} cat --volume v b/latest --stream d > /dev/null", work, args.runs)
        print(f"| {f'{gib:g} GiB' if gib >= 1 else f'{gib * 1024:g} MiB'} | {snap[0]:.2f} s | {snap[0] / gib:.2f} s | {read[0]:.2f} s | {read[0] / gib:.2f} s | {snap[2]:.0f} and {read[2]:.0f} MiB |", flush=True)
    os.remove(f"{work}/dump")


def threads(work, args):
    tree = kernel(work)
    print(f"\nOn {os.cpu_count()} processors.\n\n| threads | level 0 | processor time | peak memory | restore | processor time | peak memory |\n|---|---|---|---|---|---|---|")
    for n in (1, 2, 4, 8, 16):
        snap = timed(f"{SNAP} --job t --threads {n} -C {tree} .", work, args.runs, FRESH)
        back = timed(f"{BK} restore -q --volume v --threads {n} t/latest --target out", work, args.runs, "rm -rf out")
        print(f"| {n} | {snap[0]:.2f} s | {snap[1]:.2f} s | {snap[2]:.0f} MiB | {back[0]:.2f} s | {back[1]:.2f} s | {back[2]:.0f} MiB |", flush=True)
    shutil.rmtree(f"{work}/out")


def depth(work, args):
    edit = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers.py")
    sh(f"{FRESH}; cp -a {kernel(work)} inc; sleep 3", cwd=work)
    print("\n| snapshots in the chain | taking the last | `bk ls -R` | restore | peak memory of these | index |\n|---|---|---|---|---|---|")
    for level in range(10):
        if level > 0:
            sh(f"python3 {edit} --edit inc {level}", cwd=work)
        snap = run(f"{SNAP} --job d --level {level} -C inc .", work)
        list_ = timed(f"{BK} ls --volume v -R d/latest > /dev/null", work, args.runs)
        back = timed(f"{BK} restore -q --volume v d/latest --target out", work, args.runs, "rm -rf out")
        index = stored(work, "d", "*.bki") / 1e6
        print(f"| {level + 1} | {snap[0]:.2f} s | {list_[0]:.2f} s | {back[0]:.2f} s | {snap[2]:.0f}, {list_[2]:.0f}, {back[2]:.0f} MiB | {index:.1f} MB in all |", flush=True)
    sh("rm -rf inc out", cwd=work)


def snapshots(work, args):
    sh(f"{FRESH}; mkdir -p small; echo 1 > small/f", cwd=work)
    print("\n| snapshots | `bk list` | `bk list JOB` | `bk check` | one more snapshot | peak memory of these |\n|---|---|---|---|---|---|")
    there = 0
    for of in (1, 10, 100, 1000, 10_000):
        # Ten jobs, as a volume of that size would have; what is timed is of the first.
        more = f"for n in $(seq {there + 1} {of}); do {SNAP} --job j$((n % 10)) --level 0 -C small .; done"
        sh(more, cwd=work)
        there = of
        named = timed(f"{BK} list --volume v > /dev/null", work, args.runs)
        one = timed(f"{BK} list --volume v j1 > /dev/null", work, args.runs)
        check = timed(f"{BK} check --volume v > /dev/null || true", work, args.runs)
        next_ = run(f"{SNAP} --job j1 --level 0 -C small .", work)
        there += 1
        peaks = ", ".join(f"{row[2]:.0f}" for row in (named, one, check, next_))
        print(f"| {of:,} | {named[0]:.3f} s | {one[0]:.3f} s | {check[0]:.3f} s | {next_[0]:.3f} s | {peaks} MiB |", flush=True)


PARTS = {"entries": entries, "bytes": bytes_, "threads": threads, "depth": depth, "snapshots": snapshots}


def main():
    numbers = lambda kind: lambda text: [kind(n) for n in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", default="/dev/shm/bk-growth")
    parser.add_argument("--entries", type=numbers(int), default=[1000, 50_000, 500_000, 5_000_000])
    parser.add_argument("--gib", type=numbers(float), default=[1 / 1024, 1 / 16, 1, 5, 20])
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    for part in args.only.split(","):
        PARTS[part](args.work, args)
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
