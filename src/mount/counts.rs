//! What the kernel asked for, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counts {
    ($($name:ident),*) => {
        /// Requests by kind, and what they came to.
        #[derive(Debug, Default)]
        pub struct Counts { $(pub(super) $name: AtomicU64),* }

        /// Counts at one time.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        #[expect(missing_docs, reason = "their names say it")]
        pub struct Seen { $(pub $name: u64),* }

        impl Counts {
            /// As they are now.
            pub fn seen(&self) -> Seen {
                Seen { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }
    };
}

counts!(
    lookup, getattr, readlink, open, opendir, read, readdir, getxattr, listxattr, lseek, statfs, refused, waited,
    decoded, ahead, given, faults
);

/// One more.
pub(super) fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
