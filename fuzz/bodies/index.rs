//! Index blocks and tails: decode, encode again, compare.
use bk::{
    format::index::{
        decode_chunks, decode_entries, decode_extents, decode_footer, decode_frames, decode_inodes, decode_parts,
        decode_places, decode_tail, encode_chunks, encode_entries, encode_extents, encode_frames, encode_inodes,
        encode_parts, encode_places,
    },
    model::digest::Digest,
};

/// One input.
pub fn run(data: &[u8]) {
    let Some((&[kind, rows], plain)) =
        data.split_at_checked(2).and_then(|(a, b)| Some((<&[u8; 2]>::try_from(a).ok()?, b)))
    else {
        return;
    };
    let rows = usize::from(rows);
    match kind % 8 {
        0 => {
            if let Ok(entries) = decode_entries(plain, rows) {
                let again = decode_entries(&encode_entries(&entries), rows).expect("what was decoded encodes");
                assert_eq!(again, entries);
            }
        }
        1 => {
            if let Ok(extents) = decode_extents(plain, rows) {
                // Extents may overlap in hostile bytes; those in order encode again.
                let ordered =
                    extents.windows(2).all(|p| p[0].stream != p[1].stream || p[0].offset + p[0].len <= p[1].offset);
                if ordered {
                    assert_eq!(decode_extents(&encode_extents(&extents), rows).expect("encodes"), extents);
                }
            }
        }
        2 => {
            if let Ok(frames) = decode_frames(plain, rows) {
                assert_eq!(decode_frames(&encode_frames(&frames), rows).expect("encodes"), frames);
            }
        }
        3 => {
            if let Ok(parts) = decode_parts(plain, rows) {
                assert_eq!(decode_parts(&encode_parts(&parts), rows).expect("encodes"), parts);
            }
        }
        5 => {
            if let Ok(places) = decode_places(plain, rows) {
                assert_eq!(decode_places(&encode_places(&places), rows).expect("encodes"), places);
            }
        }
        6 => {
            if let Ok(inodes) = decode_inodes(plain, rows) {
                assert_eq!(decode_inodes(&encode_inodes(&inodes), rows).expect("encodes"), inodes);
            }
        }
        7 => {
            if let Ok(chunks) = decode_chunks(plain, rows) {
                assert_eq!(decode_chunks(&encode_chunks(&chunks), rows).expect("encodes"), chunks);
            }
        }
        _ => {
            let _ = decode_footer(plain, plain.len() as u64);
            let _ = decode_tail(plain, plain.len() as u64, &Digest::of(plain));
        }
    }
}
