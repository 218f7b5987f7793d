//! What there is to know of a worker that speaks by Node's IPC channel.
//!
//! It is carried to the next image of the same process alone: such a worker ends with its channel, so
//! there is nothing to go on with after a crash.

use serde::{Deserialize, Serialize};

use super::carry::{gather_held, resume_held};
use super::{Connection, Luggage, Number, Packing};
use crate::kinds::pipe::Pipe;
use crate::kinds::piped::{HandOver, Link, Words};
use crate::supervisor::{ConnectionId, Micros, Times};

/// Such a worker, beyond its process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Piped {
    channel: Number,
    /// Half a line.
    #[serde(default)]
    received: Vec<u8>,
    /// Descriptors whose line has not come.
    #[serde(default)]
    descriptors: Vec<Number>,
    #[serde(default)]
    unsent: Vec<(Vec<u8>, Option<Number>)>,
    #[serde(default)]
    unanswered: Vec<Connection>,
    #[serde(default)]
    unacknowledged: Vec<Option<u64>>,
    #[serde(default)]
    handed: u64,
    words: Words,
    #[serde(default)]
    is_leaving: bool,
    #[serde(default)]
    has_ended: bool,
    #[serde(default)]
    look_at: Option<Micros>,
    #[serde(default)]
    is_unheard: bool,
}

impl Piped {
    pub(crate) fn gather<'a>(
        link: &'a Link,
        times: Times,
        packing: &mut Packing<'a>,
    ) -> Option<Piped> {
        let channel = packing.pack(&link.pipe)?;
        let unanswered = link.unanswered.iter().filter_map(|it| {
            gather_held(ConnectionId(it.number), it.listener, &it.client, packing)
        });
        let unanswered = unanswered.collect();
        let descriptors = link.pipe.descriptors().filter_map(|it| packing.pack(it)).collect();
        let unsent = link.pipe.unsent().map(|(bytes, descriptor)| {
            (bytes.to_vec(), descriptor.and_then(|it| packing.pack(it)))
        });
        Some(Piped {
            channel,
            received: link.pipe.received().to_vec(),
            descriptors,
            unsent: unsent.collect(),
            unanswered,
            unacknowledged: link.unacknowledged.iter().copied().collect(),
            handed: link.handed,
            words: link.words.clone(),
            is_leaving: link.is_leaving,
            has_ended: link.has_ended,
            look_at: link.look_at.map(|at| times.from(at)),
            is_unheard: link.is_unheard,
        })
    }

    /// In the next image of the same process.
    ///
    /// # Errors
    /// A sentence: something was not carried over.
    pub(crate) fn resume(self, times: Times, luggage: &mut Luggage) -> Result<Link, String> {
        let channel = luggage.unpack(self.channel)?;
        let descriptors = self.descriptors.into_iter().map(|it| luggage.unpack(it));
        let descriptors = descriptors.collect::<Result<_, String>>()?;
        let mut unsent = Vec::new();
        for (bytes, number) in self.unsent {
            unsent.push((bytes, number.map(|it| luggage.unpack(it)).transpose()?));
        }
        let mut unanswered = std::collections::VecDeque::new();
        for held in self.unanswered {
            let (listener, client) = resume_held(&held, luggage)?;
            unanswered.push_back(HandOver { number: held.id.0, listener, client });
        }
        let pipe = Pipe::resume(channel, self.received, descriptors, unsent);
        Ok(Link {
            unanswered,
            unacknowledged: self.unacknowledged.into(),
            handed: self.handed,
            is_leaving: self.is_leaving,
            has_ended: self.has_ended,
            look_at: self.look_at.map(|at| times.to(at)),
            is_unheard: self.is_unheard,
            ..Link::new(pipe, self.words)
        })
    }
}
