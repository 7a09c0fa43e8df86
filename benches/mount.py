#!/usr/bin/env python3
"""bk mount beside the kernel's squashfs and beside bk cat, in turn, medians of the ratios pair by pair.

    benches/mount.py [--runs N] [--only NAME,…] [--kernel TARBALL] [--work DIR]

Needs root, a release build (cargo build --release) and Debian's fuse3, squashfs-tools, fio and linux-source-6.1. Works below /tmp, with
about 6 GB. "Cold" is a file system that was just mounted; the volume and the image are in the page cache. Parts: ready find tar stream random stat s3.
"""

import argparse, http.server, json, os, re, shutil, socketserver, statistics, subprocess, sys, threading, time, urllib.parse
from xml.sax.saxutils import escape

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BK = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "bk")
median = statistics.median


def sh(command, **more):
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, **more)


def timed(command):
    start = time.monotonic()
    sh(command, stdout=subprocess.DEVNULL)
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


class Slow(http.server.BaseHTTPRequestHandler):
    """Just enough of S3 to read a volume's directory: each request takes `delay` seconds longer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root, delay = "", 0.0

    def log_message(self, *_):
        pass

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        time.sleep(self.delay)
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        if "list-type" in query:
            return self.list(query)
        path = os.path.join(self.root, urllib.parse.unquote(url.path).split("/", 3)[3])
        if not os.path.isfile(path):
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        size = os.path.getsize(path)
        dates = {"ETag": '"1"', "Last_Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
        if self.command == "HEAD":
            self.send_response(200)
            for name, value in dates.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(size))
            return self.end_headers()
        with open(path, "rb") as file:
            asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not asked:
                return self.answer(200, file.read(), **dates)
            start, end = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
            file.seek(start)
            self.answer(206, file.read(end - start + 1), Content_Range=f"bytes {start}-{end}/{size}", **dates)

    def list(self, query):
        prefix, keys = query.get("prefix", ""), []
        below = prefix.split("/", 1)[1] if "/" in prefix else ""
        for folder, _, names in os.walk(os.path.join(self.root, os.path.dirname(below))):
            keys += [os.path.relpath(os.path.join(folder, name), self.root) for name in names]
        keys = sorted(key for key in keys if key.startswith(below))
        items = "".join(
            f"<Contents><Key>{escape('v/' + key)}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>1</ETag>"
            f"<Size>{os.path.getsize(os.path.join(self.root, key))}</Size></Contents>" for key in keys)
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{len(keys)}</KeyCount>{items}</ListBucketResult>"
        self.answer(200, body.encode(), Content_Type="application/xml")


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 256


def serve(volume, delay):
    handler = type("Handler", (Slow,), {"root": volume, "delay": delay})
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = dict(os.environ, AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}", AWS_ACCESS_KEY_ID="x",
               AWS_SECRET_ACCESS_KEY="x", AWS_REGION="us-east-1")
    return server, ["--volume", "s3://bucket/v", "--path-style", "--no-cache"], env


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
        sys.path.insert(0, os.path.join(ROOT, "benches"))
        import peers
        peers.dump(f"{work}/dump.sql", 2 << 30)
        sh(f"{BK} volume create {work}/dump-v >/dev/null")
        sh(f"{BK} snapshot --quiet --volume {work}/dump-v --job dump --stdin dump.sql < {work}/dump.sql")
        os.unlink(f"{work}/dump.sql")


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
            start = time.monotonic()
            sh(f"{line} {end}", env=env)
            times.append(time.monotonic() - start)
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
    server, args, env = serve(f"{work}/dump-v", 0.0)
    times = []
    with Mount([*args, "dump/1"], f"{work}/m", env) as m:
        os.stat(f"{m.at}/dump.sql")
        # From now on every request of the volume takes five seconds; 32 readers ask for frames nobody has.
        server.RequestHandlerClass.delay = 5.0
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
        server.RequestHandlerClass.delay = 0.0
        [reader.wait() for reader in readers]
    server.shutdown()
    row(f"`stat` while {waiting} slow reads wait, 99 % below", f"{sorted(times)[len(times) * 99 // 100] * 1000:.2f} ms", "", "5 ms")


def s3(work, runs):
    server, args, env = serve(f"{work}/dump-v", 0.02)
    stream(work, runs, "the same over S3 with 20 ms a request", args, env)
    server.shutdown()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="ready,find,tar,stream,random,stat,s3")
    parser.add_argument("--kernel", default="/usr/src/linux-source-6.1.tar.xz")
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
