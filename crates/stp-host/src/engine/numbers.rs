//! Maps by numbers that this engine gives itself.
//!
//! - Nobody else chooses the keys, so spreading them costs one multiplication, and equal runs stay equal.
//! - A stream's low half is a place that its node gives again and again, so that no more of them are in use than there
//!   ever were streams at once: found without any spreading. The one before has left its place by then: streams are put in
//!   when the node tells of them, and it tells of an end before it tells of who has the place next.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use stp_core::StreamId;

/// A map by [`crate::control::StreamToken`].
pub(super) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// A map by [`StreamId`].
#[derive(Debug)]
pub(super) struct StreamMap<V> {
    places: Vec<Option<(StreamId, V)>>,
    len: usize,
}

impl<V> Default for StreamMap<V> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            len: 0,
        }
    }
}

impl<V> StreamMap<V> {
    fn place(id: StreamId) -> usize {
        id.0 as u32 as usize
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, id: &StreamId) -> Option<&V> {
        match self.places.get(Self::place(*id))? {
            Some((tenant, value)) if tenant == id => Some(value),
            _ => None,
        }
    }

    pub(super) fn get_mut(&mut self, id: &StreamId) -> Option<&mut V> {
        match self.places.get_mut(Self::place(*id))? {
            Some((tenant, value)) if tenant == id => Some(value),
            _ => None,
        }
    }

    pub(super) fn insert(&mut self, id: StreamId, value: V) {
        let place = Self::place(id);
        if self.places.len() <= place {
            self.places.resize_with(place + 1, || None);
        }
        if self.places[place].replace((id, value)).is_none() {
            self.len += 1;
        }
    }

    pub(super) fn remove(&mut self, id: &StreamId) -> Option<V> {
        let place = self.places.get_mut(Self::place(*id))?;
        let (_, value) = place.take_if(|(tenant, _)| tenant == id)?;
        self.len -= 1;
        Some(value)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &StreamId> {
        self.places.iter().flatten().map(|(id, _)| id)
    }
}

/// Spreads one number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // The map takes its place from the low bits and a tag from the high ones: both depend on all of the number.
        let spread = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_knows_its_tenants_apart() {
        let (first, second) = (StreamId(1 << 32 | 3), StreamId(2 << 32 | 3));
        let mut map = StreamMap::default();
        map.insert(first, "first");
        assert_eq!((map.get(&first), map.get(&second)), (Some(&"first"), None));
        assert_eq!(map.remove(&second), None);
        assert_eq!(map.remove(&first), Some("first"));
        map.insert(second, "second");
        assert_eq!((map.get(&first), map.len()), (None, 1));
        assert!(map.get_mut(&second).is_some() && map.keys().eq([&second]));
    }
}
