#!/usr/bin/env python3
"""What `bk tune` predicts beside what whole runs take, of three kinds of data.

    benches/tune.py [--only KIND,…] [--time 60s] [--runs N] [--mb N] [--seconds-max S] [--work DIR]

Kinds: kernel (Debian's linux-source-6.1), dump (pg_dump of pgbench, by standard input), media (what compressed files this machine has below
/usr, then noise), these two of about --mb megabytes. Works on tmpfs. Of each kind all that `bk tune` measured with the usual frames is run, in
turn, as often as --runs says, as long as it is predicted to take less than --seconds-max; the table has the medians.
"""

import argparse, json, os, shutil, subprocess, sys

from common import BK, kernel, median, real_dump, run, sh, warm

# Put before what is measured, such as "chrt -r 1" on a machine with other work.
PREFIX = os.environ.get("BK_BENCH_PREFIX", "") + " "

MEDIA_SUFFIXES = (".gz", ".xz", ".png", ".jpg", ".deb", ".crate", ".zst", ".bz2")


def media(root, size):
    """Compressed files, numbered, and noise up to `size`, in files of up to 8 MB."""
    if os.path.isdir(root):
        return root
    os.makedirs(root)
    found = sorted(
        os.path.join(d, f) for d, _, fs in os.walk("/usr") for f in fs if f.endswith(MEDIA_SUFFIXES) and not os.path.islink(os.path.join(d, f))
    )
    total = 0
    for n, path in enumerate(found):
        length = os.path.getsize(path)
        if 4096 < length < size - total:
            shutil.copy(path, f"{root}/{n}-{os.path.basename(path)}")
            total += length
    n = 0
    while total < size:
        n += 1
        length = min(size - total, 1_000_000 + n * 7919 * 101 % 7_000_000)
        with open(f"{root}/noise-{n}", "wb") as out:
            out.write(os.urandom(length))
        total += length
    return root


def options(choice):
    frame = choice["frame_size"] >> 10
    return f"--compression {choice['compression']} --frame-size {frame}KiB --threads {choice['threads']}"


def whole(work, what, choice):
    """Wall seconds and stored bytes of a snapshot with these settings."""
    sh("rm -rf v; $BK volume create -q v", cwd=work, env={**os.environ, "BK": BK})
    warm(work, 3600)
    wall, _, _ = run(f"{PREFIX}{BK} snapshot --json --volume v --job t {options(choice)} {what} > result.json", work)
    result = [json.loads(line) for line in open(f"{work}/result.json")][-1]
    totals = result["totals"]
    return wall, totals["stored_bytes"] + totals["index_bytes"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="kernel,dump,media")
    parser.add_argument("--time", default="60s")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mb", type=int, default=2000)
    parser.add_argument("--seconds-max", type=float, default=15)
    parser.add_argument("--work", default="/dev/shm/bk-tune")
    args = parser.parse_args()
    work = args.work
    os.makedirs(work, exist_ok=True)
    print("| data | settings | size, predicted / measured | time, predicted | measured | predicted / measured |\n|---|---|---|---|---|---|")
    for kind in args.only.split(","):
        if kind == "dump":
            path = f"{work}/pg.sql"
            os.path.exists(path) or real_dump(path, work, scale=args.mb * 10 // 97) or sys.exit("no PostgreSQL, or not root")
            what, of = f"--stdin pg < {path}", f"--stdin --size {os.path.getsize(path)} < {path}"
        else:
            tree = kernel(work) if kind == "kernel" else media(f"{work}/media", args.mb * 1_000_000)
            what = of = f"-C {tree} ."
        sh(f"rm -rf v; {BK} volume create -q v", cwd=work)
        warm(work)
        found = json.loads(subprocess.check_output(["bash", "-c", f"{PREFIX}{BK} tune --json --time {args.time} --volume v {of}"], cwd=work))
        json.dump(found, open(f"{work}/tune-{kind}.json", "w"))
        usual = found["frame_size"]
        wishes = {wish: found[wish] for wish in ("present", "fastest", "balanced", "smallest") if found[wish]}
        choices = [c for c in found["choices"] if c["seconds"] < args.seconds_max and (c["frame_size"] == usual or c in wishes.values())]
        print(f"{kind}: tuned in {found['seconds']:.0f} s, volume {found['write_bytes_per_second'] / 1e6:.0f} MB/s", file=sys.stderr, flush=True)
        measured = [[] for _ in choices]
        for _ in range(args.runs):
            for choice, times in zip(choices, measured):
                times.append(whole(work, what, choice))
        for choice, times in zip(choices, measured):
            took, size = median(t[0] for t in times), times[0][1]
            names = [wish for wish, wished in wishes.items() if wished == choice]
            print(
                f"| {kind} | {choice['compression']}, {choice['threads']} threads{''.join(f', {n}' for n in names)} | {choice['stored_bytes'] / size:.3f} | "
                f"{choice['seconds']:.2f} s | {took:.2f} s ({min(times)[0]:.2f}–{max(times)[0]:.2f}) | {choice['seconds'] / took:.2f} |",
                flush=True,
            )
    shutil.rmtree(f"{work}/v", ignore_errors=True)


if __name__ == "__main__":
    main()
