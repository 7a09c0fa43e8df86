"""Runs bk over every hostile volume below a directory; prints number, verb, exit code and last words of each run,
and at the end on standard error the highest resident size of any of them in KiB."""

import os, resource, signal, subprocess, sys


def bounded():
    # What a bomb would write, a file or the output, ends as an error of the write.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))


bk, world = sys.argv[1:]
for n in sorted((d for d in os.listdir(world) if d.isdigit()), key=int):
    at = os.path.join(world, n)
    name = "t/" + open(f"{at}/seq").read()
    for verb, words in [
        ("ls", ["ls", "-R", name]),
        ("verify", ["verify", "--data", name]),
        ("cat", ["cat", name, "f"]),
        ("export", ["export", name]),
        ("restore", ["restore", name, "--target", f"{at}/target", "--overwrite", "always"]),
    ]:
        with open(f"{world}/out", "wb") as out:
            run = subprocess.run([bk, words[0], "--volume", f"{at}/volume", *words[1:]], stdin=subprocess.DEVNULL,
                             stdout=out, stderr=subprocess.PIPE, preexec_fn=bounded)
        said = run.stderr.decode("utf-8", "replace").replace("\n", " ").replace("\t", " ")
        print(n, verb, run.returncode, said[-300:], sep="\t", flush=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
