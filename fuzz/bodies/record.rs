//! Records and the volume's own object: with the right digest, so that the JSON behind it is reached.
use bk::{
    format::{record::Record, volume::VolumeFile},
    model::digest::Digest,
};

/// One input.
pub fn run(data: &[u8]) {
    let _ = Record::decode(data);
    let line: Vec<u8> = data.iter().copied().filter(|&b| b != b'\n').collect();
    let mut object = line.clone();
    object.extend_from_slice(format!("\n\"{}\"\n", Digest::of(&line)).as_bytes());
    let _ = VolumeFile::decode(&object);
    if let Ok(record) = Record::decode(&object) {
        let again = Record::decode(&record.encode().expect("encodes")).expect("decodes");
        assert_eq!(again, record);
    }
}
