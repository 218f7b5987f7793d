//! One connection to a master: a call goes out, its answers come back.
//!
//! A master that is stuck is exactly when somebody asks for its status, so every wait has an end,
//! connecting and sending included, unless the caller takes it away ([`Client::wait_forever`]). What
//! the master sends is bounded by [`ANSWER_MAX`].

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::wire::control::{Answer, Call, INTERFACE, Refusal, encode};

use super::args::Master;
use super::path::{Environment, client_paths, list};

/// How long a master may be silent.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer that is read, bytes.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// A connection to a master.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    patience: Option<Duration>,
}

impl Client {
    /// Finds the master that was typed, and connects.
    ///
    /// # Errors
    /// Nobody is there, or it cannot be reached.
    pub fn find(typed: &Master, environment: Environment<'_>) -> Result<Client, Error> {
        let paths = client_paths(typed, environment);
        let instance = typed.instance.clone();
        match first_that_exists(&paths) {
            Found::There(path) => {
                let mut connected = Client::connect(path, PATIENCE);
                if let Err(Error::Nobody { instance: meant, .. }) = &mut connected {
                    *meant = instance;
                }
                connected
            }
            Found::Hidden(path) => Err(Error::Denied { path: path.to_owned() }),
            Found::Nothing => Err(Error::Nobody { tried: paths, instance }),
        }
    }

    /// Connects. From then on, no wait is longer than `patience`.
    ///
    /// # Errors
    /// Nobody listens, or it cannot be reached.
    pub fn connect(path: &Path, patience: Duration) -> Result<Client, Error> {
        let refused = |cause: Errno| Error::of_connect(path, cause, patience);
        let kind = (AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let stream = UnixStream::from(socket(kind.0, kind.1, kind.2, None).map_err(refused)?);
        // The timeout for writing is the one for connecting, too: a full backlog does not block.
        stream.set_write_timeout(Some(patience)).map_err(Error::Broken)?;
        stream.set_read_timeout(Some(patience)).map_err(Error::Broken)?;
        let address = UnixAddr::new(path).map_err(refused)?;
        connect(stream.as_raw_fd(), &address).map_err(refused)?;
        Ok(Client { stream: BufReader::new(stream), patience: Some(patience) })
    }

    /// From now on, answers may take as long as they take.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn wait_forever(&mut self) -> Result<(), Error> {
        self.patience = None;
        self.stream.get_ref().set_read_timeout(None).map_err(Error::Broken)
    }

    /// Calls a method of the interface and waits for its last answer.
    ///
    /// # Errors
    /// The master said no, or said nothing.
    pub fn ask(&mut self, method: &str, parameters: impl Serialize) -> Result<Value, Error> {
        self.call(method, parameters, false)?;
        loop {
            let answer = self.answer()?;
            if !answer.continues {
                return Ok(answer.parameters);
            }
        }
    }

    /// Calls a method of the interface. With `more`, there may be several answers.
    ///
    /// # Errors
    /// The call cannot be sent.
    pub fn call(
        &mut self,
        method: &str,
        parameters: impl Serialize,
        more: bool,
    ) -> Result<(), Error> {
        let parameters = serde_json::to_value(parameters).map_err(Error::Garbage)?;
        let method = format!("{INTERFACE}.{method}");
        let bytes = encode(&Call { method, parameters, more, oneway: false });
        match self.stream.get_mut().write_all(&bytes) {
            Ok(()) => Ok(()),
            // A master that hangs up without reading may have said why.
            Err(cause) if is_end(&cause) => Ok(()),
            Err(cause) => Err(self.failed(cause)),
        }
    }

    /// The next answer.
    ///
    /// # Errors
    /// The master said no, or nothing that can be understood.
    pub fn answer(&mut self) -> Result<Answer, Error> {
        let bytes = self.message()?.ok_or(Error::Ended)?;
        let answer: Answer = results(serde_json::from_slice(&bytes).map_err(Error::Garbage)?)?;
        match &answer.error {
            Some(name) => Err(Error::of_answer(name, &answer.parameters)),
            None => Ok(answer),
        }
    }

    /// Waits until the master has hung up.
    ///
    /// # Errors
    /// It said something more.
    pub fn wait_for_end(&mut self) -> Result<(), Error> {
        match self.message() {
            Ok(None) | Err(Error::Ended) => Ok(()),
            Ok(Some(_)) => Err(Error::Superfluous),
            Err(error) => Err(error),
        }
    }

    /// One message without its NUL; none at the end of the connection.
    fn message(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut bytes = Vec::new();
        // One byte more, for the NUL.
        let bound = ANSWER_MAX as u64 + 1;
        match (&mut self.stream).take(bound).read_until(0, &mut bytes) {
            Ok(_) => {}
            Err(cause) if is_end(&cause) => return Err(Error::Ended),
            Err(cause) => return Err(self.failed(cause)),
        }
        match bytes.pop() {
            Some(0) => Ok(Some(bytes)),
            None => Ok(None),
            Some(_) if bytes.len() >= ANSWER_MAX => Err(Error::TooLong),
            Some(_) => Err(Error::Ended),
        }
    }

    fn failed(&self, cause: io::Error) -> Error {
        match self.patience {
            Some(patience) if cause.kind() == io::ErrorKind::WouldBlock => Error::Silent(patience),
            Some(_) | None => Error::Broken(cause),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

/// What an object of the interface says.
///
/// # Errors
/// It is something else.
pub fn results<T: DeserializeOwned>(object: Value) -> Result<T, Error> {
    // As a struct, serde would take an array, too.
    let object: Map<String, Value> = serde_json::from_value(object).map_err(Error::Garbage)?;
    serde_json::from_value(Value::Object(object)).map_err(Error::Garbage)
}

/// Why a master did not do what was asked.
#[derive(Debug)]
pub enum Error {
    /// There is no socket, or nobody listens on it.
    Nobody {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
        /// The instance that was meant.
        instance: Option<String>,
    },
    /// This user may not connect.
    Denied {
        /// The socket, or what hides it.
        path: PathBuf,
    },
    /// The socket cannot be reached for another reason.
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The reason.
        cause: Errno,
    },
    /// The master did not answer in time.
    Silent(Duration),
    /// The connection failed.
    Broken(io::Error),
    /// The connection ended before the answer.
    Ended,
    /// The answer is longer than [`ANSWER_MAX`].
    TooLong,
    /// The answer is not what the interface says.
    Garbage(serde_json::Error),
    /// There were more answers than the interface says.
    Superfluous,
    /// The master would not: why, and what to do.
    Refused(String),
    /// The master tried, and it failed: why, and what to do.
    Failed(String),
    /// The master began, and then the service was told to end: a sentence.
    Stopping(String),
    /// The master does not know this method.
    Unknown,
    /// The master answered an error of no known name.
    Other {
        /// Its name.
        name: String,
        /// What belongs to it.
        parameters: Value,
    },
}

impl Error {
    fn of_connect(path: &Path, cause: Errno, patience: Duration) -> Error {
        let path = path.to_owned();
        if [Errno::ENOENT, Errno::ENOTDIR, Errno::ECONNREFUSED].contains(&cause) {
            Error::Nobody { tried: vec![path], instance: None }
        } else if [Errno::EACCES, Errno::EPERM].contains(&cause) {
            Error::Denied { path }
        } else if cause == Errno::EAGAIN {
            // The backlog stayed full.
            Error::Silent(patience)
        } else {
            Error::Unreachable { path, cause }
        }
    }

    fn of_answer(name: &str, parameters: &Value) -> Error {
        let refusal = serde_json::from_value(parameters.clone());
        let reason = refusal.map(|Refusal { reason }| super::output::one_line(&reason));
        match (name.rsplit_once('.'), reason) {
            (Some((INTERFACE, "Refused")), Ok(reason)) => Error::Refused(reason),
            (Some((INTERFACE, "Failed")), Ok(reason)) => Error::Failed(reason),
            (Some((INTERFACE, "Stopping")), Ok(reason)) => Error::Stopping(reason),
            (Some(("org.varlink.service", "MethodNotFound" | "InterfaceNotFound")), _) => {
                Error::Unknown
            }
            (Some(_) | None, _) => {
                Error::Other { name: name.to_owned(), parameters: parameters.clone() }
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Nobody { tried, instance } => {
                let unit = match instance {
                    Some(name) => format!("rcluster@{name}"),
                    None => "rcluster".to_owned(),
                };
                let tried = list(tried);
                write!(f, "no {unit} is running here (tried {tried}); start it with ")?;
                write!(f, "`systemctl start {unit}`")?;
                if instance.is_none() { f.write_str(" or `rcluster run`") } else { Ok(()) }
            }
            Error::Denied { path } => write!(
                f,
                "permission denied: {}; use sudo, or become a member of the group that may \
                 command this rcluster (`control-group`)",
                path.display()
            ),
            Error::Unreachable { path, cause } => {
                write!(f, "{} cannot be reached: {}", path.display(), cause.desc())
            }
            Error::Silent(patience) => write!(
                f,
                "the master is silent for {}; it may be stuck, its journal may say why",
                humantime::format_duration(*patience)
            ),
            Error::Broken(cause) => write!(f, "the connection to the master broke: {cause}"),
            Error::Ended => f.write_str("the master hung up before it answered"),
            Error::TooLong => {
                write!(f, "the master's answer is longer than {} MiB", ANSWER_MAX >> 20)
            }
            Error::Garbage(cause) => write!(
                f,
                "the master answers in another way than this rcluster ({}) knows: {cause}",
                env!("CARGO_PKG_VERSION")
            ),
            Error::Superfluous => f.write_str("the master said more than it was asked"),
            Error::Refused(reason) | Error::Failed(reason) | Error::Stopping(reason) => {
                f.write_str(reason)
            }
            Error::Unknown => write!(
                f,
                "the master does not know this; it is of another version than this rcluster ({})",
                env!("CARGO_PKG_VERSION")
            ),
            Error::Other { name, parameters } => {
                let name = super::output::one_line(name);
                match parameters.is_null() {
                    true => write!(f, "the master answered {name}"),
                    false => write!(f, "the master answered {name} {parameters}"),
                }
            }
        }
    }
}

impl std::error::Error for Error {}

/// Whether this is how a connection looks whose other end has gone.
fn is_end(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

enum Found<'a> {
    There(&'a Path),
    /// Nothing is seen, but something may be behind a directory that this user may not enter.
    Hidden(&'a Path),
    Nothing,
}

fn first_that_exists(paths: &[PathBuf]) -> Found<'_> {
    let mut found = Found::Nothing;
    for path in paths {
        match std::fs::symlink_metadata(path) {
            Ok(_) => return Found::There(path),
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                found = Found::Hidden(path);
            }
            Err(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;
