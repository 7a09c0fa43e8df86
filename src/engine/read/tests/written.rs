//! What the writer finishes, the reader opens, however long the directory of its blocks would become.

use super::*;
use crate::{
    engine::write::{index::IndexWriter, sorted::Sorted},
    format::index::{Chunk, ChunkRun, FOOTER_LEN, decode_footer},
};

/// An index of `entries`, with traces, whose directory may have `max` bytes: the volume it is on, if it could be written.
fn written(entries: &[Entry], max: Option<u64>) -> Result<(Volume, Snapshot, u64)> {
    let Made { volume, mut snapshot, .. } = make(vec![other("", EntryKind::Dir, "")], |_| {});
    let store = crate::volume::memory::MemoryStore::default();
    let key = format!("{}{INDEX_NAME}", run_dir(&snapshot.job, snapshot.run_id));
    let mut index = IndexWriter::new(store.create(&key).unwrap()).with_traces(Sorted::new(Arc::new(store.clone())));
    if let Some(max) = max {
        index = index.with_directory_len_max(max);
    }
    for (n, entry) in (1..).zip(entries) {
        index.entry(entry.clone())?;
        if entry.owns_extent() {
            index.extent(Extent { stream: 0, offset: n * 1024, len: entry.stored_len, digest: Digest::of(b"x") })?;
            let chunks = vec![Chunk { len: 1, id: [7; 16] }];
            index.chunks(ChunkRun { stream: 0, path: entry.path.clone(), chunks })?;
        }
    }
    snapshot.index = index.finish()?;
    let mut footer = [0; FOOTER_LEN];
    store.read_at(&key, snapshot.index.len - FOOTER_LEN as u64, &mut footer)?;
    let (_, plain_len) = decode_footer(&footer, snapshot.index.len)?;
    Ok((Volume { store: Arc::new(store), ..volume }, snapshot, plain_len))
}

#[test]
fn what_makes_the_directory_too_long_is_left_out_or_an_error() {
    let entries: Vec<Entry> = (0..40 * 1024_u64)
        .map(|n| {
            let mut entry = file(&format!("f{n:07}"), b"x").0;
            entry.ino = n;
            entry
        })
        .collect();
    let count = |index: &IndexReader, section| index.blocks().iter().filter(|block| block.section == section).count();
    let traces = |max: Option<u64>| {
        let (volume, snapshot, plain_len) = written(&entries, max)?;
        let index = IndexReader::open(&volume, &snapshot)?;
        assert!(max.is_none_or(|max| plain_len <= max), "{plain_len} of {max:?}");
        assert_eq!(index.rows().filter(|row| row.is_ok()).count(), entries.len());
        index.blocks().iter().for_each(|block| index.check_block(block).unwrap());
        assert_eq!((count(&index, Section::Entries), count(&index, Section::Extents)), (40, 40));
        Ok::<_, Error>((count(&index, Section::Chunks), count(&index, Section::Inodes), plain_len))
    };
    let (chunks, inodes, whole) = traces(None).unwrap();
    assert_eq!((chunks, inodes), (40, 40));
    assert_eq!(traces(Some(whole * 4)).unwrap(), (40, 40, whole));
    let (chunks, inodes, _) = traces(Some(whole)).unwrap();
    assert!((1..40).contains(&chunks) && inodes == 0 || inodes == 40, "{chunks} and {inodes}");
    let mut least = whole;
    while traces(Some(least)).is_ok() {
        least -= whole / 50;
    }
    // Half of it is what no reader can do without.
    assert!(least < whole * 3 / 4, "{least} of {whole}");
    let error = traces(Some(least)).unwrap_err();
    assert!(error.to_string().contains("directory would be longer"), "{error}");
}

#[test]
fn long_paths_that_share_nothing_fit_their_blocks() {
    let mut entries: Vec<Entry> = (0..1100)
        .map(|n| {
            let path: Vec<String> = (0..16).map(|depth| format!("{n:05}{depth:02}{}", "x".repeat(248))).collect();
            other(&path.join("/"), EntryKind::Removed, "").0
        })
        .collect();
    entries.sort_by(|a, b| path::cmp_rows(&a.path, &b.path));
    assert_eq!(entries[0].path.len(), 4095);
    let (volume, snapshot, _) = written(&entries, None).unwrap();
    let index = IndexReader::open(&volume, &snapshot).unwrap();
    let paths: Vec<Vec<u8>> = index.rows().map(|row| row.unwrap().entry.path).collect();
    assert!(paths.iter().eq(entries.iter().map(|entry| &entry.path)));
}
