#!/usr/bin/env python3
"""bk on S3 beside bk in a directory: snapshot and restore of a tree, in turn, medians of the ratios pair by pair.

    benches/s3.py [--runs N] [--tree DIR | --kernel TARBALL] [--work DIR] [--bk BINARY] [--server BINARY]

The server is the one of the tests (s3s-fs), in a process of its own on the same processors: cargo bench --bench s3_server --no-run
builds it. It works on tmpfs, with and without 20 ms added to each request. Its own processor time is shown beside the ratios.
"""

import argparse, os, shutil, subprocess, tempfile, time

from common import BK, KERNEL, Server, median, warm


def bk(binary, volume, env, *words):
    warm("/dev/shm")
    start = time.monotonic()
    subprocess.run([binary, *words, "--quiet"], env={**env, "BK_VOLUME": volume}, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tree")
    parser.add_argument("--kernel", default=KERNEL)
    parser.add_argument("--work", default="/dev/shm")
    parser.add_argument("--bk", default=BK)
    parser.add_argument("--server")
    args = parser.parse_args()
    work = tempfile.mkdtemp(prefix="bk-s3-", dir=args.work)
    try:
        tree = args.tree
        if not tree:
            tree = f"{work}/tree"
            os.mkdir(tree)
            subprocess.run(["tar", "-xf", args.kernel, "-C", tree], check=True)
        size = sum(int(line.split()[0]) for line in subprocess.check_output(["du", "-sb", tree], text=True).splitlines())
        print(f"tree of {size / 1e6:.0f} MB, {args.runs} pairs each; ratio: the directory's time by S3's, 1 is as fast")
        print("| | directory | S3 | median of ratios (min–max) | server's processor time |\n|---|---:|---:|---:|---:|")
        for delay in (0, 20):
            measure(args, work, tree, delay)
    finally:
        shutil.rmtree(work)


def measure(args, work, tree, delay):
    with Server(f"{work}/s3-{delay}", delay, args.server) as server:
        rows = {"snapshot": [], "restore": []}
        for n in range(args.runs + 1):
            taken = {}
            for kind in ("dir", "s3") if n % 2 else ("s3", "dir"):
                volume = f"{work}/volume" if kind == "dir" else f"s3://bk-test/v{n}"
                env = {**server.env, "XDG_CACHE_HOME": f"{work}/cache"}
                bk(args.bk, volume, env, "volume", "create", volume)
                before = server.cpu()
                taken["snapshot", kind] = bk(args.bk, volume, env, "snapshot", "--job", "k", "-C", tree, ".")
                between = server.cpu()
                taken["restore", kind] = bk(args.bk, volume, env, "restore", "k/1", "--target", f"{work}/out")
                taken["snapshot", kind, "cpu"], taken["restore", kind, "cpu"] = between - before, server.cpu() - between
                shutil.rmtree(f"{work}/out")
                shutil.rmtree(f"{work}/volume" if kind == "dir" else f"{work}/s3-{delay}/bk-test/v{n}")
            if n:
                for what, found in rows.items():
                    found.append((taken[what, "dir"], taken[what, "s3"], taken[what, "s3", "cpu"]))
        for what, found in rows.items():
            ratios = [a / b for a, b, _ in found]
            print(
                f"| {what}, {delay} ms | {median(r[0] for r in found):.2f} s | {median(r[1] for r in found):.2f} s | "
                f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | {median(r[2] for r in found):.2f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
