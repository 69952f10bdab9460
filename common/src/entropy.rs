//! Randomness as it is passed in. Nothing here draws any by itself.

/// A source of random bytes: the operating system's in production, a seeded one in simulations.
pub trait Entropy: Send {
    /// Fills `bytes` with random bytes.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// `N` random bytes.
pub fn draw<const N: usize>(entropy: &mut (impl Entropy + ?Sized)) -> [u8; N] {
    let mut bytes = [0; N];
    entropy.fill(&mut bytes);
    bytes
}
