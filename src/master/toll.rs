//! What a reload has cost, in words.

use super::journal::{CUT, Entry, HANDED_BACK, Level, MessageId, REDISPATCHED};
use crate::supervisor::{Generation, Toll};

/// The last worker that a reload retired is gone.
pub(super) fn accounted(generation: Generation, toll: Toll) -> Entry {
    let text = format!("reload of generation {}: {}", generation.0, toll_in_words(toll));
    let level = if toll.cut > 0 { Level::Warning } else { Level::Notice };
    let entry = Entry::new(level, text).id(MessageId::Accounted).generation(generation.0);
    entry
        .with(HANDED_BACK, toll.handed_back)
        .with(REDISPATCHED, toll.redispatched)
        .with(CUT, toll.cut)
}

/// `312 handed back, 0 re-dispatched, 0 cut`
pub(super) fn toll_in_words(toll: Toll) -> String {
    let Toll { handed_back, redispatched, cut, unseen } = toll;
    let unseen = match unseen {
        0 => None,
        1 => Some("connections of 1 worker that accepts by itself are not counted".to_owned()),
        many => {
            Some(format!("connections of {many} workers that accept by themselves are not counted"))
        }
    };
    let known = (unseen.is_none() || handed_back + redispatched + cut > 0)
        .then(|| format!("{handed_back} handed back, {redispatched} re-dispatched, {cut} cut"));
    known.into_iter().chain(unseen).collect::<Vec<String>>().join("; ")
}
