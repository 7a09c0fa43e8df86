#!/usr/bin/env python3
"""bk mount beside the kernel's squashfs and beside bk cat, in turn, medians of the ratios pair by pair.

    benches/mount.py [--runs N] [--only NAME,…] [--kernel TARBALL] [--work DIR]

Needs root, a release build (cargo build --release; for stat and s3 also cargo bench --bench s3_server --no-run) and Debian's
fuse3, squashfs-tools, fio and linux-source-6.1. Works below /tmp, with about 6 GB. "Cold" is a file system that was just mounted; the volume and the image are in the page cache. Parts: ready find tar stream random stat s3.
"""

import argparse, json, os, re, shutil, signal, subprocess, sys, time

from common import BK, KERNEL, Server, made_dump, median, sh, warm


def timed(command, env=None):
    # What is read through the kernel takes as many pages.
    warm("/dev/shm", 2600)
    start = time.monotonic()
    sh(command, stdout=subprocess.DEVNULL, env=env)
    return time.monotonic() - start


class Mount:
    """A mount of bk; `ready` is the seconds till it was there."""

    def __init__(self, args, at, env=None):
        os.makedirs(at, exist_ok=True)
        self.at = at
        start = time.monotonic()
        self.process = subprocess.Popen([BK, "mount", "--json", *args, at], stdout=subprocess.PIPE, env=env)
        line = self.process.stdout.readline()
        self.ready = time.monotonic() - start
        if b'"mounted"' not in line:
            sys.exit(f"not mounted: {line}")

    def rss(self):
        text = open(f"/proc/{self.process.pid}/status").read()
        return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run([BK, "umount", "--quiet", "--lazy", self.at], check=True)
        self.process.wait()


class Squash:
    def __init__(self, image, at):
        os.makedirs(at, exist_ok=True)
        self.at = at
        sh(f"mount -o loop,ro {image} {at}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        sh(f"umount {self.at}")


def row(name, ours, peer, target, ratios=None):
    ratio = f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else ""
    print(f"| {name} | {ours} | {peer} | {ratio} | {target} |", flush=True)


def ready(work, runs):
    volume, many = f"{work}/many-v", f"{work}/many"
    if not os.path.isdir(volume):
        for d in range(1000):
            os.makedirs(f"{many}/d{d:03}")
            for n in range(1000):
                os.close(os.open(f"{many}/d{d:03}/file-{n:04}", os.O_CREAT | os.O_WRONLY))
        sh(f"{BK} volume create {volume} >/dev/null; {BK} snapshot --quiet --volume {volume} --job many -C {many} .")
        shutil.rmtree(many)
    times, peaks = [], []
    for _ in range(runs):
        with Mount(["--volume", volume, "many/1"], f"{work}/m") as m:
            times.append(m.ready)
            sh(f"find {m.at} -printf '%s %m\\n' >/dev/null")
            peaks.append(m.rss())
    row("ready, 1,000,000 entries", f"{median(times) * 1000:.0f} ms", "", "50 ms")
    row("memory after `find` over them", f"{median(peaks):.0f} MiB", "", "64 MiB + cache")


def kernel(work, tarball):
    if not os.path.isdir(f"{work}/v"):
        os.makedirs(f"{work}/tree")
        sh(f"tar -C {work}/tree -xJf {tarball}")
        sh(f"mksquashfs {work}/tree {work}/tree.sqfs -comp zstd -quiet -no-progress >/dev/null")
        sh(f"{BK} volume create {work}/v >/dev/null; {BK} snapshot --quiet --volume {work}/v --job kernel -C {work}/tree .")
        shutil.rmtree(f"{work}/tree")


def find(work, runs):
    first, second, peer, ratios = [], [], [], []
    for _ in range(runs):
        with Squash(f"{work}/tree.sqfs", f"{work}/q") as q, Mount(["--volume", f"{work}/v", "kernel/1"], f"{work}/m") as m:
            line = "find {} -printf '%s %m\\n'"
            peer.append(timed(line.format(q.at)))
            first.append(timed(line.format(m.at)))
            second.append(timed(line.format(m.at)))
            ratios.append(first[-1] / peer[-1])
    row("kernel tree, first `find -printf`", f"{median(first):.2f} s", f"{median(peer):.2f} s", "1.0", ratios)
    row("kernel tree, second", f"{median(second):.2f} s", "", "0.4 s")


def tar(work, runs):
    ours, peer, ratios, peaks = [], [], [], []
    for _ in range(runs):
        line = "tar -C {} -cf - . | cat >/dev/null"
        with Squash(f"{work}/tree.sqfs", f"{work}/q") as q:
            peer.append(timed(line.format(q.at)))
        with Mount(["--volume", f"{work}/v", "kernel/1"], f"{work}/m") as m:
            ours.append(timed(line.format(m.at)))
            ratios.append(ours[-1] / peer[-1])
            peaks.append(m.rss())
    row("kernel tree, `tar \\| cat`, cold", f"{median(ours):.2f} s", f"{median(peer):.2f} s", "0.5", ratios)
    row("memory after it", f"{median(peaks):.0f} MiB", "", "64 MiB + 256")


def dump(work):
    if not os.path.isdir(f"{work}/dump-v"):
        made_dump(f"{work}/dump.sql", 2 << 30)
        sh(f"{BK} volume create {work}/dump-v >/dev/null")
        sh(f"{BK} snapshot --quiet --volume {work}/dump-v --job dump --stdin dump.sql < {work}/dump.sql")
        os.unlink(f"{work}/dump.sql")


def far(work, delay_ms):
    """The same volume in a bucket: the server that has it, and how bk is told to read it."""
    os.makedirs(f"{work}/s3/bk-test", exist_ok=True)
    os.path.exists(f"{work}/s3/bk-test/v") or shutil.copytree(f"{work}/dump-v", f"{work}/s3/bk-test/v")
    return Server(f"{work}/s3", delay_ms), ["--volume", "s3://bk-test/v", "--no-cache"]


def source(work, tarball):
    """A stream of text that compresses as usual: the kernel's sources as a tar, 1.3 GiB."""
    if not os.path.isdir(f"{work}/source-v"):
        sh(f"{BK} volume create {work}/source-v >/dev/null")
        sh(f"xz -dc {tarball} | {BK} snapshot --quiet --volume {work}/source-v --job dump --stdin dump.sql")


def stream(work, runs, name="stream of 2 GiB, `cat`", args=None, env=None):
    args = args or ["--volume", f"{work}/dump-v"]
    ours, peer, piped, ratios, piped_ratios = [], [], [], [], []
    words = " ".join(args)
    for _ in range(runs):
        line = f"{BK} cat {words} dump/1 --stream dump.sql"
        for end, times in [(">/dev/null", peer), ("| cat >/dev/null", piped)]:
            times.append(timed(f"{line} {end}", env))
        with Mount([*args, "dump/1"], f"{work}/m", env) as m:
            ours.append(timed(f"cat {m.at}/dump.sql"))
        # Of speeds, as the promise is.
        ratios.append(peer[-1] / ours[-1])
        piped_ratios.append(piped[-1] / ours[-1])
    row(name + " (peer: bk cat; ratio of speeds)", f"{median(ours):.2f} s", f"{median(peer):.2f} s", "≥ 0.7", ratios)
    row(name + " (peer: bk cat \\| cat)", f"{median(ours):.2f} s", f"{median(piped):.2f} s", "", piped_ratios)


def rand(work, runs):
    speeds = []
    for _ in range(runs):
        with Mount(["--volume", f"{work}/dump-v", "dump/1"], f"{work}/m") as m:
            size = 128 << 20
            sh(f"head -c {size} {m.at}/dump.sql >/dev/null")
            # Frames in bk's cache, no pages in the kernel's: O_DIRECT.
            out = subprocess.run(
                ["fio", "--name=r", f"--filename={m.at}/dump.sql", "--readonly", "--rw=randread", "--bs=4k", "--direct=1", "--numjobs=4",
                 f"--size={size}", "--time_based", "--runtime=5", "--group_reporting", "--output-format=json", "--ioengine=psync"],
                check=True, stdout=subprocess.PIPE).stdout
            speeds.append(json.loads(out)["jobs"][0]["read"]["iops"])
    row("random 4 KiB reads, 4 jobs, warm frames", f"{median(speeds):,.0f} a second", "", "50,000")


def stat(work, runs):
    server, args = far(work, 0)
    times = []
    with server, Mount([*args, "dump/1"], f"{work}/m", server.env) as m:
        os.stat(f"{m.at}/dump.sql")
        # From now on no request of the volume is answered; 32 readers ask for frames nobody has.
        server.process.send_signal(signal.SIGSTOP)
        readers = [subprocess.Popen(["dd", f"if={m.at}/dump.sql", "of=/dev/null", "bs=4096", "count=1", "iflag=direct", f"skip={n * 10000}"],
                                    stderr=subprocess.DEVNULL) for n in range(32)]
        time.sleep(1)
        for n in range(2000):
            start = time.monotonic()
            # A name that is not there asks bk each time.
            try:
                os.stat(f"{m.at}/no-such-{n}")
            except FileNotFoundError:
                pass
            times.append(time.monotonic() - start)
        waiting = sum(reader.poll() is None for reader in readers)
        server.process.send_signal(signal.SIGCONT)
        [reader.wait() for reader in readers]
    row(f"`stat` while {waiting} slow reads wait, 99 % below", f"{sorted(times)[len(times) * 99 // 100] * 1000:.2f} ms", "", "5 ms")


def s3(work, runs):
    server, args = far(work, 20)
    with server:
        stream(work, runs, "the same over S3 with 20 ms a request", args, server.env)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="ready,find,tar,stream,random,stat,s3")
    parser.add_argument("--kernel", default=KERNEL)
    parser.add_argument("--work", default="/tmp/bk-mount-bench")
    args = parser.parse_args()
    only = args.only.split(",")
    os.makedirs(args.work, exist_ok=True)
    print("| what | bk mount | peer | ratio | promise |\n|---|---|---|---|---|", flush=True)
    if "ready" in only:
        ready(args.work, args.runs)
    if {"find", "tar"} & set(only):
        kernel(args.work, args.kernel)
    if {"stream", "random", "stat", "s3"} & set(only):
        dump(args.work)
    for name, part in [("find", find), ("tar", tar), ("stream", stream), ("random", rand), ("stat", stat), ("s3", s3)]:
        if name in only:
            part(args.work, args.runs)
    if "stream" in only:
        source(args.work, args.kernel)
        stream(args.work, args.runs, "stream of sources, 1.3 GiB, `cat`", ["--volume", f"{args.work}/source-v"])


if __name__ == "__main__":
    main()
