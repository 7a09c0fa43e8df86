//! Tar members: what the strict reader takes, the writer writes again to the same entry.
use bk::format::tar::{padded, read::TarReader, write};

/// One input.
pub fn run(data: &[u8]) {
    // Checksums are mended, so that the fuzzer need not find them.
    let mut bytes = data.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..265] == b"ustar\x0000" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    let mut reader = TarReader::new(&bytes[..], 0);
    for _ in 0..1000 {
        let Ok(Some(member)) = reader.next_member() else { break };
        let entry = member.entry;
        if entry.size > 1 << 20 || entry.stored_len > 1 << 20 {
            continue;
        }
        let mut again = Vec::new();
        write::header(&entry, &mut again);
        again.resize(again.len() + padded(entry.stored_len) as usize, 0);
        let mut second = TarReader::new(&again[..], 0);
        let found = second.next_member().expect("what was read writes").expect("a member").entry;
        assert_eq!(
            (found.path, found.kind, found.size, found.stored_len),
            (entry.path, entry.kind, entry.size, entry.stored_len)
        );
    }
}
