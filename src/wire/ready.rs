//! READY: what a worker says of itself.

use super::fields::{Malformed, field, flag, header, is_set, word};

pub(super) const READY: u8 = 1;

pub(super) const TAG_LIMIT: u8 = 1;
const TAG_STRIDE: u8 = 2;
const TAG_BOARD: u8 = 3;
pub(super) const TAG_HANDBACK: u8 = 6;
const TAG_ADOPTION: u8 = 10;
const TAG_LEDGER: u8 = 16;
const TAG_DRAINING: u8 = 17;
const TAG_TELLS: u8 = 20;
const TAG_ACCEPTS: u8 = 27;

/// What a worker says of itself when it is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// How many it can hold at once. 0: as many as come.
    pub limit: u32,
    /// The scoreboard's stride that it counts with, bytes.
    pub stride: u32,
    /// The scoreboard's size as it sees it, bytes.
    pub board: u32,
    /// It takes connections that were handed back, with leftover.
    pub handback: bool,
    /// It keeps its ledger.
    pub ledger: bool,
    /// It outlives its master.
    pub adoption: bool,
    /// It was told to drain before. Only in an answer to WELCOME.
    pub draining: bool,
    /// It says what it holds when it is asked.
    pub tells: bool,
    /// It accepts by itself when it is told where.
    pub accepts: bool,
}

impl Ready {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = header(READY);
        field(&mut bytes, TAG_LIMIT, &self.limit.to_le_bytes());
        field(&mut bytes, TAG_STRIDE, &self.stride.to_le_bytes());
        field(&mut bytes, TAG_BOARD, &self.board.to_le_bytes());
        flag(&mut bytes, TAG_HANDBACK, self.handback);
        flag(&mut bytes, TAG_ADOPTION, self.adoption);
        flag(&mut bytes, TAG_LEDGER, self.ledger);
        flag(&mut bytes, TAG_DRAINING, self.draining);
        flag(&mut bytes, TAG_TELLS, self.tells);
        flag(&mut bytes, TAG_ACCEPTS, self.accepts);
        bytes
    }

    pub(super) fn decode(fields: &[u8]) -> Result<Ready, Malformed> {
        Ok(Ready {
            limit: word(fields, TAG_LIMIT)?,
            stride: word(fields, TAG_STRIDE)?,
            board: word(fields, TAG_BOARD)?,
            handback: is_set(fields, TAG_HANDBACK)?,
            ledger: is_set(fields, TAG_LEDGER)?,
            adoption: is_set(fields, TAG_ADOPTION)?,
            draining: is_set(fields, TAG_DRAINING)?,
            tells: is_set(fields, TAG_TELLS)?,
            accepts: is_set(fields, TAG_ACCEPTS)?,
        })
    }
}
