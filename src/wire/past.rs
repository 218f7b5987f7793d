//! What a connection has behind it, and its entry in a worker's ledger: fields of CONNECTION and HANDBACK.

use super::fields::{Malformed, field, number};

pub(super) const TAG_IDLE_SINCE: u8 = 7;
pub(super) const TAG_REQUESTS: u8 = 8;
pub(super) const TAG_LEFTOVER: u8 = 9;
pub(super) const TAG_ENTRY: u8 = 15;

/// The most leftover that a connection may have, in bytes. One that has more is not handed back.
pub const LEFTOVER_MAX: u32 = 1024 * 1024;

/// What a connection that goes from worker to worker has behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// When its last answer was finished, or it was taken if it had none: microseconds of
    /// CLOCK_MONOTONIC, which all processes of a machine share.
    pub idle_since: u64,
    /// Requests so far, in all workers.
    pub requests: u64,
    /// Bytes of leftover in the second descriptor. 0: none, and no second descriptor.
    pub leftover: u32,
}

impl Past {
    pub(super) fn encode(self, bytes: &mut Vec<u8>) {
        field(bytes, TAG_IDLE_SINCE, &self.idle_since.to_le_bytes());
        field(bytes, TAG_REQUESTS, &self.requests.to_le_bytes());
        if self.leftover > 0 {
            field(bytes, TAG_LEFTOVER, &self.leftover.to_le_bytes());
        }
    }

    /// `None` when no field speaks of it.
    pub(super) fn decode(fields: &[u8]) -> Result<Option<Past>, Malformed> {
        let idle_since = number(fields, TAG_IDLE_SINCE)?;
        let requests = number(fields, TAG_REQUESTS)?;
        let leftover = number(fields, TAG_LEFTOVER)?;
        if idle_since.or(requests).or(leftover).is_none() {
            return Ok(None);
        }
        let leftover = match u32::try_from(leftover.unwrap_or(0)) {
            Ok(length) if length <= LEFTOVER_MAX => length,
            Ok(_) | Err(_) => return Err(Malformed::Field(TAG_LEFTOVER)),
        };
        let (idle_since, requests) = (idle_since.unwrap_or(0), requests.unwrap_or(0));
        Ok(Some(Past { idle_since, requests, leftover }))
    }
}

pub(super) fn put_entry(bytes: &mut Vec<u8>, entry: Option<u32>) {
    if let Some(entry) = entry {
        field(bytes, TAG_ENTRY, &entry.to_le_bytes());
    }
}

pub(super) fn entry(fields: &[u8]) -> Result<Option<u32>, Malformed> {
    let entry = number(fields, TAG_ENTRY)?.map(u32::try_from);
    entry.transpose().map_err(|_| Malformed::Field(TAG_ENTRY))
}

/// Appends the entry to a message that was encoded without one: most connections are new, and their
/// message is the same but for this field.
pub fn add_entry(message: &mut Vec<u8>, entry: u32) {
    put_entry(message, Some(entry));
}
