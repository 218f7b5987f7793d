//! Which descriptors are carried over to the next image: the one place that says so.
//!
//! Every descriptor of this process is close-on-exec. While the state is gathered for an upgrade,
//! each part packs those that it needs again, and writes their numbers down; right before the
//! `execve` exactly these lose the mark, and the next image sets it again as it takes them over.
//! Whatever nobody unpacks is closed.
//!
//! | part | carries |
//! |---|---|
//! | listeners | every listening socket, claimed or not, and what systemd's store gave back |
//! | workers | pidfd, our end of the channel, the duplicate of theirs |
//! | boards | the memfd of each scoreboard |
//! | editions | programs, interpreters, working directories |
//! | held, lingering | clients in the master's own hand, with their leftovers |
//! | ledgers | the memfd of each crash ledger, and the clients' sockets kept with it |
//! | control | the socket, and its clients |
//! | journal | the read ends of workers' pipes |
//! | notify | what systemd is to keep and has not taken yet |
//! | kept | the state that outlives a crash |

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};

use crate::sys::ancillary::{number_of, take_over};

/// The number of a descriptor, the same before and after.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub(crate) struct Number(i32);

/// Descriptors as they are packed.
#[derive(Debug)]
pub(crate) enum Packing<'a> {
    /// Nothing is carried: the state is read by another process.
    Left,
    Carried(Vec<BorrowedFd<'a>>),
}

impl<'a> Packing<'a> {
    /// Packs it, if anything is packed.
    pub(crate) fn pack(&mut self, descriptor: &'a (impl AsFd + ?Sized)) -> Option<Number> {
        let descriptor = descriptor.as_fd();
        match self {
            Packing::Left => None,
            Packing::Carried(all) => {
                all.push(descriptor);
                Some(Number(number_of(&descriptor)))
            }
        }
    }

    /// What was packed.
    pub(crate) fn numbers(&self) -> Vec<Number> {
        match self {
            Packing::Left => Vec::new(),
            Packing::Carried(all) => all.iter().map(|it| Number(number_of(it))).collect(),
        }
    }

    /// Whether what was packed survives an `execve`, or is closed by it.
    ///
    /// # Errors
    /// Those of `fcntl(2)`.
    pub(crate) fn survive(&self, survives: bool) -> std::io::Result<()> {
        let Packing::Carried(all) = self else { return Ok(()) };
        let flag = if survives { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
        for descriptor in all {
            fcntl(descriptor, FcntlArg::F_SETFD(flag))?;
        }
        Ok(())
    }
}

/// Descriptors that were carried over, by their numbers; each is unpacked once.
#[derive(Debug, Default)]
pub(crate) struct Luggage(BTreeMap<Number, OwnedFd>);

impl Luggage {
    /// Takes over all of these, which an earlier image of this process has packed.
    ///
    /// # Errors
    /// A sentence: one of them is not there.
    pub(crate) fn take_over(numbers: &[Number]) -> Result<Luggage, String> {
        let mut all = BTreeMap::new();
        for &number in numbers {
            if number.0 < 3 || all.contains_key(&number) {
                return Err(format!("descriptor {} cannot have been carried over", number.0));
            }
            let descriptor = take_over(number.0)
                .map_err(|error| format!("descriptor {} is not there: {error}", number.0))?;
            all.insert(number, descriptor);
        }
        Ok(Luggage(all))
    }

    /// Unpacks one.
    ///
    /// # Errors
    /// A sentence: it was not packed, or is unpacked already.
    pub(crate) fn unpack(&mut self, number: Number) -> Result<OwnedFd, String> {
        let gone = || format!("descriptor {} was not carried over", number.0);
        self.0.remove(&number).ok_or_else(gone)
    }

    /// Unpacks one that must be there.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn unpack_some(&mut self, number: Option<Number>) -> Result<OwnedFd, String> {
        self.unpack(number.ok_or_else(|| "a descriptor was not carried over".to_owned())?)
    }
}
