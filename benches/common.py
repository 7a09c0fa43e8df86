"""What the scripts of benches/ share: the program under measurement, its peers' input, and how a command is timed."""

import glob, os, random, shutil, statistics, subprocess, sys, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
BK = os.path.join(TARGET, "release", "bk")
KERNEL = "/usr/src/linux-source-6.1.tar.xz"

median = statistics.median


def sh(command, **more):
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, **more)


def run(command, cwd):
    """Wall seconds, processor seconds and the largest process's peak memory in MiB."""
    start = time.monotonic()
    process = subprocess.Popen(["/usr/bin/time", "-f", "%U %S %M", "-o", f"{cwd}/time.txt", "bash", "-o", "pipefail", "-c", command], cwd=cwd)
    code = process.wait()
    wall = time.monotonic() - start
    if code != 0:
        sys.exit(f"failed ({code}): {command}")
    user, system, peak = open(f"{cwd}/time.txt").read().split()[-3:]
    return wall, float(user) + float(system), int(peak) / 1024


def kernel(work, tarball=KERNEL):
    """Debian's kernel sources as a tree below `work`."""
    tree = f"{work}/{os.path.basename(tarball).removesuffix('.tar.xz')}"
    if not os.path.isdir(tree):
        subprocess.run(["tar", "-xJf", tarball, "-C", work], check=True)
    return tree


def warm(work, mib=1600):
    """Has the machine's free memory at hand: a host may have taken it back, and then the first use of a page costs ten times as much."""
    sh(f"dd if=/dev/zero of={work}/warm bs=1M count={mib} status=none; rm {work}/warm")


def made_dump(path, size):
    """A file like a pg_dump of a pgbench database: lines of numbers, tabs and padding."""
    rng = random.Random(1)
    with open(path, "wb") as out:
        n = 0
        while out.tell() < size:
            rows = []
            for _ in range(20000):
                n += 1
                rows.append(f"{n}\t{n // 100000 + 1}\t{rng.randint(-5000, 5000)}\t{' ' * 84}\n")
            out.write("".join(rows).encode())
        out.truncate(size)


def real_dump(path, work, scale=20):
    """A pg_dump of a pgbench database after some use, about 97 MB for each ten; false where PostgreSQL is missing, or this is not root."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not found or os.geteuid() != 0:
        return False
    cluster = f"{work}/postgres"
    script = """
set -e
export PATH="$1:$PATH" PGHOST="$2" PGDATABASE=bench
initdb -D "$2/data" --no-sync > "$2/log"
pg_ctl -D "$2/data" -o "-k $2 -c listen_addresses= -c fsync=off -c max_wal_size=128MB" -l "$2/log" -w start > /dev/null
trap 'pg_ctl -D "$2/data" -m immediate stop > /dev/null' EXIT
createdb
pgbench -q -i -s "$3" > "$2/log" 2>&1
pgbench -n -t 20000 > "$2/log" 2>&1
pg_dump
"""
    os.makedirs(cluster)
    shutil.chown(cluster, "postgres")
    try:
        with open(path, "wb") as out:
            subprocess.run(["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "bash", "-c", script, "-", found[-1], cluster, str(scale)], stdout=out, check=True, cwd=cluster)
    finally:
        shutil.rmtree(cluster)
    return True


class Server:
    """The S3 server of the tests (s3s-fs), in a process of its own: `env` is what bk needs to find it, its bucket is bk-test below `root`."""

    def __init__(self, root, delay_ms, binary=None):
        found = [path for path in glob.glob(f"{TARGET}/release/deps/s3_server-*") if not path.endswith(".d")]
        binary = binary or max(found, key=os.path.getmtime, default=None) or sys.exit("no server: cargo bench --bench s3_server --no-run")
        os.makedirs(f"{root}/bk-test", exist_ok=True)
        self.process = subprocess.Popen([binary, root, str(delay_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.env = dict(os.environ)
        for line in self.process.stdout:
            if line == "\n":
                break
            name, value = line.rstrip("\n").split("=", 1)
            self.env[name] = value

    def cpu(self):
        """Processor seconds so far."""
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
