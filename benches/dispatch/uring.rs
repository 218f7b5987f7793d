//! The floor's master on io_uring: one multishot accept, whose completions are the connections.
//!
//! Either only that, with sendmsg and close as system calls; or those as linked entries of the same ring,
//! so that one io_uring_enter brings a connection and sends the one before it.
#![expect(unsafe_code, reason = "entries point to memory, which outlives them")]

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, cqueue, opcode, types};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::close;

use super::floor::{listener, port_of, send_to};

/// Entries of the ring. Its completions are twice as many.
const ENTRIES: u32 = 256;
/// Messages that may be under way.
const SLOTS: usize = 64;
/// What the accept's completions are called; those of a slot have its number.
const ACCEPT: u64 = u64::MAX;
/// A send that has failed. One that has not is silent: its close speaks for both.
const SEND: u64 = u64::MAX - 1;

/// Why this kernel, or whatever confines this process, will not have it; `Ok`: a connection came.
pub fn prove() -> io::Result<()> {
    let listener = listener(0, false);
    let mut ring = ring()?;
    arm(&mut ring, &listener);
    let _client = TcpStream::connect(("127.0.0.1", port_of(&listener)))?;
    ring.submit_and_wait(1)?;
    let Some(accepted) = ring.completion().next() else {
        return Err(io::Error::other("nothing was accepted"));
    };
    let number = checked(accepted.result())?;
    close(number)?;
    let goes_on = cqueue::more(accepted.flags());
    if goes_on { Ok(()) } else { Err(io::Error::other("an accept ends with its first client")) }
}

/// For this thread alone, which is not interrupted for completions; as far as the kernel knows of that.
fn ring() -> io::Result<IoUring> {
    let alone = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES);
    match alone {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(ENTRIES),
        result => result,
    }
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

fn push(ring: &mut IoUring, entries: &[Entry]) {
    // SAFETY: what they point to are slots, each of which stays as it is until its close has ended.
    let pushed = unsafe { ring.submission().push_multiple(entries) };
    pushed.unwrap();
}

/// Every client from now on is a completion.
fn arm(ring: &mut IoUring, listener: &OwnedFd) {
    let accept = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd()));
    let accept = accept.flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build();
    push(ring, &[accept.user_data(ACCEPT)]);
}

/// Waits for so many completions, and takes all that are there.
fn wait(ring: &mut IoUring, count: usize, completions: &mut Vec<cqueue::Entry>) {
    match ring.submit_and_wait(count) {
        Ok(_) => {}
        // Whoever is looked at by strace is interrupted; and a full queue is emptied below.
        Err(error) if [libc::EINTR, libc::EBUSY].map(Some).contains(&error.raw_os_error()) => {}
        Err(error) => panic!("io_uring_enter: {error}"),
    }
    completions.clear();
    completions.extend(ring.completion());
}

/// Accepts by the ring alone.
pub fn pass_on(listener: &OwnedFd, workers: &[OwnedFd]) {
    let mut ring = ring().unwrap();
    arm(&mut ring, listener);
    let mut workers = workers.iter().cycle();
    let mut completions = Vec::new();
    loop {
        wait(&mut ring, 1, &mut completions);
        for completion in &completions {
            if !cqueue::more(completion.flags()) {
                arm(&mut ring, listener);
            }
            // A client may have gone before he was accepted.
            let Ok(client) = checked(completion.result()) else { continue };
            send_to(workers.next().unwrap(), &[client]);
            close(client).unwrap();
        }
    }
}

/// One descriptor, as a control message has it.
#[repr(C)]
struct Rights {
    header: libc::cmsghdr,
    descriptor: i32,
}

/// A message that may be under way.
struct Slot {
    text: &'static [u8],
    vector: libc::iovec,
    rights: Rights,
    message: libc::msghdr,
}

impl Slot {
    fn new() -> Box<Slot> {
        // SAFETY: these are numbers and pointers, for which zero is a value.
        let (vector, rights, message) = unsafe { std::mem::zeroed() };
        let mut slot = Box::new(Slot { text: b"connection", vector, rights, message });
        slot.vector.iov_base = slot.text.as_ptr().cast_mut().cast();
        slot.vector.iov_len = slot.text.len();
        let length = std::mem::offset_of!(Rights, descriptor) + size_of::<i32>();
        slot.rights.header.cmsg_len = length;
        slot.rights.header.cmsg_level = libc::SOL_SOCKET;
        slot.rights.header.cmsg_type = libc::SCM_RIGHTS;
        slot.message.msg_iov = &raw mut slot.vector;
        slot.message.msg_iovlen = 1;
        slot.message.msg_control = (&raw mut slot.rights).cast();
        slot.message.msg_controllen = size_of::<Rights>();
        slot
    }

    /// To send this connection there, and to close it afterwards. Only the close tells of its end.
    fn entries(&mut self, number: usize, client: i32, worker: &OwnedFd) -> [Entry; 2] {
        self.rights.descriptor = client;
        let worker = types::Fd(worker.as_raw_fd());
        let send = opcode::SendMsg::new(worker, &raw const self.message);
        let flags = u32::try_from(libc::MSG_NOSIGNAL).unwrap();
        let send = send.flags(flags).build().user_data(SEND);
        let close = opcode::Close::new(types::Fd(client)).build();
        [send.flags(Flags::IO_LINK | Flags::SKIP_SUCCESS), close.user_data(number as u64)]
    }
}

/// Accepts, sends and closes by the ring.
pub fn pass_all(listener: &OwnedFd, workers: &[OwnedFd]) {
    let mut ring = ring().unwrap();
    arm(&mut ring, listener);
    let mut workers = workers.iter().cycle();
    let mut slots: Vec<Box<Slot>> = (0..SLOTS).map(|_| Slot::new()).collect();
    let mut free: Vec<usize> = (0..SLOTS).collect();
    let (mut accepted, mut completions) = (VecDeque::new(), Vec::new());
    loop {
        while let (Some(&client), Some(&number)) = (accepted.front(), free.last()) {
            let entries = slots[number].entries(number, client, workers.next().unwrap());
            push(&mut ring, &entries);
            accepted.pop_front();
            free.pop();
        }
        // Those who are sent are closed in passing: what is waited for is the next client.
        let under_way = SLOTS - free.len();
        wait(&mut ring, under_way + usize::from(accepted.is_empty()), &mut completions);
        for completion in &completions {
            let result = checked(completion.result());
            match completion.user_data() {
                ACCEPT => {
                    if !cqueue::more(completion.flags()) {
                        arm(&mut ring, listener);
                    }
                    accepted.extend(result.ok());
                }
                SEND => panic!("sendmsg: {}", Errno::from_raw(-completion.result())),
                number => {
                    result.unwrap();
                    free.push(usize::try_from(number).unwrap());
                }
            }
        }
    }
}
