//! Which level a snapshot gets and what it is an increment of: by the log's order, never by time.
//!
//! The base is the newest live snapshot of a lower level. When it does not serve (there is none, another definition,
//! objects missing) the snapshot is taken at level 0 instead and says so: an older base would only hide the damage.

use serde::Serialize;

use super::log::JobLog;
use crate::{
    error::{Error, Kind, Result},
    format::record::Snapshot,
    model::digest::Digest,
};

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// 0 to 9.
    pub level: u8,
    /// The clause of a schedule the level comes from, for messages.
    pub because: Option<String>,
    /// A level that cannot be taken is an error, not a level 0.
    pub no_promote: bool,
    /// The base must be of the level just below.
    pub strict_base: bool,
}

/// What is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "decision", rename_all = "kebab-case")]
pub enum Decision {
    /// Level 0, as asked for.
    Full,
    /// An increment.
    Increment {
        /// Its level, 1 to 9.
        #[serde(skip)]
        level: u8,
        /// The seq of its base.
        base: u64,
        /// Seqs of the base's chain, level 0 first, the base last.
        chain: Vec<u64>,
    },
    /// Level 0, because the level that was asked for has no usable base.
    Promoted {
        /// The level that was asked for.
        from: u8,
        /// What is wrong.
        why: String,
    },
}

impl Decision {
    /// The level that is taken.
    pub fn level(&self) -> u8 {
        match self {
            Self::Full | Self::Promoted { .. } => 0,
            Self::Increment { level, .. } => *level,
        }
    }

    /// The level that was asked for, when level 0 is taken instead.
    pub fn promoted_from(&self) -> Option<u8> {
        match self {
            Self::Promoted { from, .. } => Some(*from),
            _ => None,
        }
    }

    /// Seqs of the chain it builds on, level 0 first.
    pub fn chain(&self) -> &[u64] {
        match self {
            Self::Increment { chain, .. } => chain,
            _ => &[],
        }
    }
}

/// Chooses the base. `damage` says what is missing of a snapshot's objects; it is asked for the members of one chain at most.
///
/// With `no_promote`, a base that does not serve is an error: of integrity when it is damaged.
pub fn decide(
    log: &JobLog,
    request: &Request,
    definition: &Digest,
    mut damage: impl FnMut(&Snapshot) -> Result<Option<String>>,
) -> Result<Decision> {
    let level = request.level;
    if level == 0 {
        return Ok(Decision::Full);
    }
    let (kind, why) = match base(log, request, definition, &mut damage)? {
        Ok(chain) => {
            let seqs: Vec<u64> = chain.iter().map(|member| member.seq).collect();
            let base = seqs.last().copied().unwrap_or_default();
            return Ok(Decision::Increment { level, base, chain: seqs });
        }
        Err(refused) => refused,
    };
    if request.no_promote {
        return Err(Error::new(kind, format!("cannot take level {level}: {why}"))
            .with_hint("without --no-promote, level 0 is taken instead"));
    }
    Ok(Decision::Promoted { from: level, why })
}

type Refused = (Kind, String);

fn base(
    log: &JobLog,
    request: &Request,
    definition: &Digest,
    damage: &mut dyn FnMut(&Snapshot) -> Result<Option<String>>,
) -> Result<Result<Vec<Snapshot>, Refused>> {
    let (job, level) = (&log.job, request.level);
    let fits = |s: &&Snapshot| if request.strict_base { s.level + 1 == level } else { s.level < level };
    let Some(base) = log.live().rev().find(fits) else {
        let below = if request.strict_base { format!("of level {}", level - 1) } else { "of a lower level".to_owned() };
        return Ok(Err((Kind::Other, format!("{job} has no snapshot {below}"))));
    };
    if base.definition != *definition {
        let why = format!("sources, excludes or streams are not those of {job}/{}", base.seq);
        return Ok(Err((Kind::Other, why)));
    }
    // A record that cannot be read may be a newer base, or the end of this one.
    if let Some(unread) = log.unread.iter().find(|&&unread| unread > base.seq) {
        let why = format!("record {unread} of the log of {job} cannot be read");
        return Ok(Err((Kind::Integrity, why)));
    }
    let chain = match log.chain(base) {
        Ok(chain) => chain,
        Err(e) => return Ok(Err((Kind::Integrity, e.to_string()))),
    };
    for member in &chain {
        if let Some(what) = damage(member)? {
            return Ok(Err((
                Kind::Integrity,
                format!("{job}/{}, which is needed as a base, is damaged: {what}", member.seq),
            )));
        }
    }
    Ok(Ok(chain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::log::tests::Made;

    fn decide(made: &Made, level: u8, strict_base: bool) -> Decision {
        let request = Request { level, strict_base, ..Request::default() };
        super::decide(&made.log, &request, &Digest::of(b"what"), |_| Ok(None)).unwrap()
    }

    fn chain(made: &Made, level: u8) -> Vec<u64> {
        decide(made, level, false).chain().to_vec()
    }

    #[test]
    fn the_newest_of_a_lower_level_is_the_base() {
        let mut made = Made::new();
        assert!(matches!(decide(&made, 1, false), Decision::Promoted { from: 1, .. }));
        assert_eq!(decide(&made, 0, false), Decision::Full);
        made.snapshot(0, None, None);
        made.snapshot(1, Some(1), None);
        made.snapshot(2, Some(2), None);
        made.snapshot(2, Some(2), None);
        assert_eq!(chain(&made, 1), [1]);
        assert_eq!(chain(&made, 2), [1, 2]);
        assert_eq!(chain(&made, 3), [1, 2, 4]);
        assert_eq!(chain(&made, 9), [1, 2, 4]);
        assert!(matches!(decide(&made, 9, true), Decision::Promoted { from: 9, .. }));
        assert_eq!(decide(&made, 3, true).chain(), [1, 2, 4]);
        made.snapshot(0, None, None);
        assert_eq!(chain(&made, 2), [5]);
        assert_eq!(decide(&made, 2, true).chain(), [1, 2], "the newest of level 1, older though it is");
        made.expire(&[5]);
        assert_eq!(chain(&made, 2), [1, 2]);
    }

    #[test]
    fn order_is_the_logs_not_the_clocks() {
        let mut made = Made::new();
        made.snapshot(0, None, None);
        made.snapshot(0, None, None);
        made.log.states[0].snapshot.taken_at = crate::plan::log::tests::day(1000);
        assert_eq!(chain(&made, 1), [2]);
    }

    #[test]
    fn a_base_that_does_not_serve_makes_level_0() {
        let mut made = Made::new();
        made.snapshot(0, None, None);
        made.snapshot(1, Some(1), None);
        let request = Request { level: 2, ..Request::default() };
        let strict = Request { no_promote: true, ..request.clone() };
        let what = Digest::of(b"what");
        let log = &made.log;
        let why = |decision| match decision {
            Decision::Promoted { from: 2, why } => why,
            other => panic!("{other:?}"),
        };
        let other = Digest::of(b"other sources");
        assert!(why(super::decide(log, &request, &other, |_| Ok(None)).unwrap()).contains("sources"));
        assert_eq!(super::decide(log, &strict, &other, |_| Ok(None)).unwrap_err().kind(), Kind::Other);
        let damage = |s: &Snapshot| Ok((s.seq == 1).then(|| "part gone".to_owned()));
        assert!(why(super::decide(log, &request, &what, damage).unwrap()).contains("db/1"));
        assert_eq!(super::decide(log, &strict, &what, damage).unwrap_err().kind(), Kind::Integrity);
        let failed = |_: &Snapshot| Err(Error::new(Kind::Volume, "gone"));
        assert_eq!(super::decide(log, &request, &what, failed).unwrap_err().kind(), Kind::Volume, "no answer is no no");
        // A record that cannot be read may have expired the base.
        made.log.push(3, Err(Error::integrity("torn")));
        assert!(why(super::decide(&made.log, &request, &what, |_| Ok(None)).unwrap()).contains("record 3"));
    }
}
