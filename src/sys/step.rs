//! Which step between fork and exec failed.
//!
//! The standard library passes the number of an error from the child to the parent, and nothing
//! else. The kernel's numbers are small, so the step goes in the upper half of it.

use std::fmt;
use std::io;

use nix::libc;

use super::resource::RESOURCES;

/// A step on the way from fork to exec, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The leadership of a process group of its own.
    Group,
    /// The signals that are blocked and ignored.
    Signals,
    /// The working directory.
    Directory,
    /// The descriptors that the program inherits.
    Descriptors,
    /// `oom-score-adjust`
    OomScore,
    /// `nice`
    Nice,
    /// The resource limit at this place of [`RESOURCES`].
    Resource(usize),
    /// The capabilities that exec would keep.
    Capabilities,
    /// The supplementary groups.
    SupplementaryGroups,
    /// The group.
    GroupId,
    /// The user.
    UserId,
    /// `no-new-privileges`
    NoNewPrivileges,
}

/// All but the resource limits.
const NUMBERED: &[Step] = &[
    Step::Group,
    Step::Signals,
    Step::Directory,
    Step::Descriptors,
    Step::OomScore,
    Step::Nice,
    Step::Capabilities,
    Step::SupplementaryGroups,
    Step::GroupId,
    Step::UserId,
    Step::NoNewPrivileges,
];

/// Above all numbers of errors.
const SHIFT: u32 = 16;

/// The number of the first resource limit. 0 is no step.
const FIRST_RESOURCE: usize = 1 + NUMBERED.len();

impl Step {
    fn number(self) -> usize {
        if let Step::Resource(place) = self {
            return FIRST_RESOURCE + place;
        }
        1 + NUMBERED.iter().position(|step| *step == self).unwrap_or_default()
    }

    fn of_number(number: usize) -> Option<Step> {
        let is_resource = |place: &usize| *place < RESOURCES.len();
        match number.checked_sub(FIRST_RESOURCE) {
            Some(place) => Some(place).filter(is_resource).map(Step::Resource),
            None => NUMBERED.get(number.checked_sub(1)?).copied(),
        }
    }

    /// In the child: the failure of this step, as it can be passed on. Async-signal-safe.
    pub(super) fn failed(self, error: &io::Error) -> io::Error {
        let number = error.raw_os_error().unwrap_or(libc::EINVAL);
        // Both are small.
        let step = i32::try_from(self.number()).unwrap_or_default();
        io::Error::from_raw_os_error(number | (step << SHIFT))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Step::Group => "begin a group of processes",
            Step::Signals => "set the signals",
            Step::Directory => "enter the working directory",
            Step::Descriptors => "pass on the descriptors",
            Step::OomScore => "set oom-score-adjust",
            Step::Nice => "set nice",
            Step::Capabilities => "give up the ambient capabilities",
            Step::SupplementaryGroups => "set the supplementary groups",
            Step::GroupId => "become the group",
            Step::UserId => "become the user",
            Step::NoNewPrivileges => "set no-new-privileges",
            Step::Resource(place) => {
                let name = RESOURCES.get(*place).map_or("", |(name, _)| name);
                return write!(to, "set the resource limit {name}");
            }
        })
    }
}

/// A step that failed, and why: `cannot set nice: Permission denied (os error 13)`.
#[derive(Debug)]
pub struct Failure {
    /// Which.
    pub step: Step,
    /// What the kernel said.
    pub why: io::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "cannot {}: {}", self.step, self.why)
    }
}

impl std::error::Error for Failure {}

/// In the parent: what came from the child. A [`Failure`], where it was one of the steps.
pub(super) fn told(error: io::Error) -> io::Error {
    let Some(number) = error.raw_os_error().and_then(|it| usize::try_from(it).ok()) else {
        return error;
    };
    let Some(step) = Step::of_number(number >> SHIFT) else { return error };
    let low = i32::try_from(number & ((1 << SHIFT) - 1)).unwrap_or(libc::EINVAL);
    let why = io::Error::from_raw_os_error(low);
    io::Error::new(why.kind(), Failure { step, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_comes_through_with_its_error() {
        let resources = (0..RESOURCES.len()).map(Step::Resource);
        for step in NUMBERED.iter().copied().chain(resources) {
            let error = step.failed(&io::Error::from_raw_os_error(libc::EPERM));
            let told = told(error);
            assert_eq!(told.kind(), io::ErrorKind::PermissionDenied);
            let failure = told.get_ref().unwrap().downcast_ref::<Failure>().unwrap();
            assert_eq!((failure.step, failure.why.raw_os_error()), (step, Some(libc::EPERM)));
        }
        let plain = told(io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(plain.raw_os_error(), Some(libc::ENOENT));
        let unknown = told(io::Error::from_raw_os_error(1000 << SHIFT));
        assert_eq!(unknown.raw_os_error(), Some(1000 << SHIFT));
        let nofile = RESOURCES.iter().position(|(name, _)| *name == "nofile").unwrap();
        let text = told_text(Step::Resource(nofile));
        assert_eq!(text, "cannot set the resource limit nofile: Permission denied (os error 13)");
    }

    fn told_text(step: Step) -> String {
        told(step.failed(&io::Error::from_raw_os_error(libc::EACCES))).to_string()
    }
}
