//! An input's bytes, taken from the front. Behind the end everything is zero.

/// What is left of an input.
#[derive(Debug, Clone)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// The whole input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// True if nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, at most `len`.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number<const LEN: usize>(&mut self) -> [u8; LEN] {
        let mut number = [0; LEN];
        let taken = self.bytes(LEN);
        number[..taken.len()].copy_from_slice(taken);
        number
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.number())
    }

    /// The next 16 bits.
    pub fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.number())
    }

    /// The next 32 bits.
    pub fn long(&mut self) -> u32 {
        u32::from_le_bytes(self.number())
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.number())
    }
}
