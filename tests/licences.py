#!/usr/bin/env python3
"""Holds the licences and sources of all dependencies to deny.toml, where cargo-deny is not installed."""

import json, re, subprocess, sys, tomllib

licences = tomllib.load(open("deny.toml", "rb"))["licenses"]
metadata = json.loads(subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], check=True, capture_output=True).stdout)


def holds(name, expression):
    """Whether an SPDX expression is met by the licences allowed to a package."""
    allowed = set(licences["allow"])
    for exception in licences.get("exceptions", []):
        allowed |= set(exception["allow"]) if exception["crate"] == name else set()
    words = re.findall(r"\(|\)|AND|OR|[A-Za-z0-9.+-]+(?: WITH [A-Za-z0-9.+-]+)?", expression.replace("/", " OR "))
    text = " ".join({"AND": "and", "OR": "or", "(": "(", ")": ")"}.get(word, str(word in allowed)) for word in words)
    return eval(text, {"__builtins__": {}})  # only True, False, and, or, brackets


bad = []
for package in metadata["packages"]:
    if not holds(package["name"], package["license"] or "none"):
        bad.append(f"{package['name']} {package['version']}: licence {package['license']}")
    if package["source"] not in (None, "registry+https://github.com/rust-lang/crates.io-index"):
        bad.append(f"{package['name']} {package['version']}: source {package['source']}")
print(f"{len(metadata['packages'])} packages, {len(bad)} refused")
sys.exit("\n".join(bad) or 0)
