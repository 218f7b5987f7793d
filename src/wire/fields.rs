//! The form of a message: a header, then fields of tag, length and value.
//!
//! Written and read without ever trusting a length. What the fields mean is in `message`.

use super::VERSION;

const HEADER: usize = 4;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header.
    Short(usize),
    /// Of a version that is none: 0.
    Version(u8),
    /// A field runs past the end, lacks or has a wrong length.
    Field(u8),
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Malformed::Short(len) => write!(f, "a message of {len} bytes"),
            Malformed::Version(version) => write!(f, "a message of version {version}"),
            Malformed::Field(tag) => write!(f, "a message whose field {tag} is damaged"),
        }
    }
}

/// The beginning of a message.
pub(super) fn header(kind: u8) -> Vec<u8> {
    vec![VERSION, kind, 0, 0]
}

/// Appends a field. A value beyond 255 bytes is cut.
pub(super) fn field(bytes: &mut Vec<u8>, tag: u8, value: &[u8]) {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    bytes.extend([tag, length]);
    bytes.extend(&value[..usize::from(length)]);
}

/// A message of one field.
pub(super) fn named(kind: u8, tag: u8, text: &str) -> Vec<u8> {
    let mut bytes = header(kind);
    field(&mut bytes, tag, text.as_bytes());
    bytes
}

/// A field that is there when it is true, so that what needs no new word says none.
pub(super) fn flag(bytes: &mut Vec<u8>, tag: u8, is_true: bool) {
    if is_true {
        field(bytes, tag, &[1]);
    }
}

/// The type of a message, and its fields.
pub(super) fn split(bytes: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    match bytes {
        [0, _, _, _, ..] => Err(Malformed::Version(0)),
        [_, kind, _, _, fields @ ..] => Ok((*kind, fields)),
        _ => Err(Malformed::Short(bytes.len().min(HEADER))),
    }
}

/// Fields one by one, up to the first that is damaged.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Fields<'a> {
        Fields(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        match bytes {
            [] => None,
            [tag, length, rest @ ..] if rest.len() >= usize::from(*length) => {
                let (value, next) = rest.split_at(usize::from(*length));
                self.0 = next;
                Some(Ok((*tag, value)))
            }
            [tag, ..] => Some(Err(Malformed::Field(*tag))),
        }
    }
}

/// The value of the first field with this tag.
fn find(fields: &[u8], tag: u8) -> Result<Option<&[u8]>, Malformed> {
    for field in Fields::of(fields) {
        let (found, value) = field?;
        if found == tag {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// A field of text, empty when it is not there.
pub(super) fn text(fields: &[u8], tag: u8) -> Result<&str, Malformed> {
    let text = find(fields, tag)?.unwrap_or_default();
    std::str::from_utf8(text).map_err(|_| Malformed::Field(tag))
}

/// A field of just this length, which must be there.
pub(super) fn exact<const N: usize>(fields: &[u8], tag: u8) -> Result<[u8; N], Malformed> {
    let value = find(fields, tag)?.unwrap_or_default();
    value.try_into().map_err(|_| Malformed::Field(tag))
}

/// A flag, down when it is not there.
pub(super) fn is_set(fields: &[u8], tag: u8) -> Result<bool, Malformed> {
    Ok(number(fields, tag)? == Some(1))
}

/// A field of up to four bytes' worth, 0 when it is not there.
pub(super) fn word(fields: &[u8], tag: u8) -> Result<u32, Malformed> {
    u32::try_from(number(fields, tag)?.unwrap_or(0)).map_err(|_| Malformed::Field(tag))
}

/// A field that is a little-endian number of up to eight bytes.
pub(super) fn number(fields: &[u8], tag: u8) -> Result<Option<u64>, Malformed> {
    let Some(value) = find(fields, tag)? else { return Ok(None) };
    if value.len() > 8 {
        return Err(Malformed::Field(tag));
    }
    let mut bytes = [0; 8];
    bytes[..value.len()].copy_from_slice(value);
    Ok(Some(u64::from_le_bytes(bytes)))
}
