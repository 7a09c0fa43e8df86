//! A read put together from the pieces it touches, when the last of their frames has come.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::io::Errno;

use super::{Failure, content::Piece, frames::Plain, pool::Promise};

/// Bytes that were read.
pub enum Data {
    /// A run of a frame.
    Run(Plain, Range<usize>),
    /// Put together.
    Own(Vec<u8>),
}

impl Data {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Data::Run(plain, range) => plain.get(range.clone()).unwrap_or_default(),
            Data::Own(bytes) => bytes,
        }
    }
}

/// A read whose frames are on their way.
pub struct Gathering {
    pieces: Vec<Piece>,
    plains: Mutex<Vec<Option<Plain>>>,
    missing: AtomicUsize,
    promise: Arc<Promise<Data>>,
}

impl Gathering {
    /// Of `pieces`, of which so many are to come.
    pub fn new(pieces: Vec<Piece>, missing: usize, promise: Arc<Promise<Data>>) -> Arc<Self> {
        let plains = Mutex::new(pieces.iter().map(|_| None).collect());
        Arc::new(Self { plains, missing: AtomicUsize::new(missing), pieces, promise })
    }

    /// What it is put together from.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Takes the frame of a piece; none when it could not be had.
    pub fn take(&self, n: usize, plain: Option<Plain>) {
        let Some(plain) = plain else { return self.promise.keep(Err(Failure::Plain(Errno::IO))) };
        self.plains.lock().unwrap_or_else(PoisonError::into_inner)[n] = Some(plain);
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish();
        }
    }

    /// Keeps the promise: all is there.
    pub fn finish(&self) {
        let plains = std::mem::take(&mut *self.plains.lock().unwrap_or_else(PoisonError::into_inner));
        let data = match (&self.pieces[..], &plains[..]) {
            ([Piece::Data { from, len, .. }], [Some(plain)]) => Data::Run(Arc::clone(plain), *from..from + len),
            (pieces, plains) => joined(pieces, plains),
        };
        self.promise.keep(Ok(data));
    }
}

/// The bytes of all pieces in one.
pub fn joined(pieces: &[Piece], plains: &[Option<Plain>]) -> Data {
    let mut bytes = Vec::new();
    for (piece, plain) in pieces.iter().zip(plains) {
        match (piece, plain) {
            (Piece::Data { from, len, .. }, Some(plain)) => {
                bytes.extend_from_slice(plain.get(*from..from + len).unwrap_or_default());
            }
            (Piece::Zeros(len), _) => bytes.resize(bytes.len() + len, 0),
            (Piece::Data { .. }, None) => {}
        }
    }
    Data::Own(bytes)
}
