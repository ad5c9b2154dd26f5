//! The protobuf wire format: tags, variable-length integers and lengths. Nothing here panics on any input.

use crate::error::Error;

/// The value behind a tag, not yet interpreted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Token<'a> {
    /// A variable-length integer.
    Varint(u64),
    /// Eight bytes, little-endian.
    Fixed64(u64),
    /// Four bytes, little-endian.
    Fixed32(u32),
    /// Bytes with their length before them.
    Bytes(&'a [u8]),
}

/// Reads the fields of one message.
pub(super) struct Reader<'a> {
    message: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a str, bytes: &'a [u8]) -> Self {
        Self { message, bytes, at: 0 }
    }

    /// The message's name, for errors.
    pub(super) fn message(&self) -> &'a str {
        self.message
    }

    /// The next field's number and value; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Token<'a>)>, Error> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_| self.malformed("a field number out of range"))?;
        let token = match key & 7 {
            0 => Token::Varint(self.varint()?),
            1 => Token::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| self.malformed("a length out of range"))?;
                Token::Bytes(self.take(length)?)
            }
            5 => Token::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(self.malformed("an unknown wire type")),
        };
        Ok(Some((tag, token)))
    }

    /// The next number of a packed list; `None` at the end.
    pub(super) fn packed_int(&mut self) -> Result<Option<i64>, Error> {
        if self.at == self.bytes.len() { Ok(None) } else { Ok(Some(self.varint()?.cast_signed())) }
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or_else(|| self.malformed("the end comes within a number"))?;
            self.at += 1;
            // Of the tenth byte only the lowest bit has room.
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or_default();
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number of more than ten bytes"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed("a length that reaches behind the end"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| self.malformed("the end comes within a number"))
    }

    /// The value as bytes.
    pub(super) fn bytes(&self, token: Token<'a>) -> Result<&'a [u8], Error> {
        match token {
            Token::Bytes(bytes) => Ok(bytes),
            _ => Err(self.malformed("a number where bytes belong")),
        }
    }

    /// The value as text.
    pub(super) fn string(&self, token: Token<'a>) -> Result<String, Error> {
        let bytes = self.bytes(token)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.malformed("text that is not UTF-8")),
        }
    }

    /// The value as a signed integer.
    pub(super) fn int(&self, token: Token<'a>) -> Result<i64, Error> {
        match token {
            Token::Varint(value) | Token::Fixed64(value) => Ok(value.cast_signed()),
            Token::Fixed32(value) => Ok(i64::from(value.cast_signed())),
            Token::Bytes(_) => Err(self.malformed("bytes where a number belongs")),
        }
    }

    /// The value as a floating-point number.
    pub(super) fn double(&self, token: Token<'a>) -> Result<f64, Error> {
        match token {
            Token::Fixed64(bits) => Ok(f64::from_bits(bits)),
            Token::Fixed32(bits) => Ok(f64::from(f32::from_bits(bits))),
            _ => Err(self.malformed("no floating-point number where one belongs")),
        }
    }

    /// An error at the place read so far.
    pub(super) fn malformed(&self, problem: &'static str) -> Error {
        Error::Malformed { message: self.message.to_owned(), offset: self.at, problem }
    }
}
