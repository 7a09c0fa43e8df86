//! A small seeded generator (splitmix64), so that a failing tree is made again from its seed.

pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Bytes no compressor can shrink.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Words that shrink about as text does.
    pub fn prose(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "the ",
            "a ",
            "snapshot ",
            "volume ",
            "frame ",
            "index ",
            "of ",
            "is ",
            "restored\n",
            "part ",
            "in ",
            "static int ",
            "return 0;\n",
            "{\n",
            "}\n",
            "commit ",
        ];
        let mut bytes = Vec::with_capacity(len + 64);
        while bytes.len() < len {
            let draw = self.next();
            bytes.extend_from_slice(WORDS[(draw & 15) as usize].as_bytes());
            if draw & 0x70 == 0 {
                bytes.extend_from_slice(format!("{:x} ", draw >> 40).as_bytes());
            }
        }
        bytes.truncate(len);
        bytes
    }

    /// Prose, or noise one time in four.
    pub fn content(&mut self, len: usize) -> Vec<u8> {
        if self.below(4) == 0 { self.noise(len) } else { self.prose(len) }
    }
}
