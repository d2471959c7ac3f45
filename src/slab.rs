//! Values with stable indices, in pages that never move: a hundred thousand connections don't need room for two hundred
//! thousand, nor twice their room while a table grows.

/// Values to a page. What is not used of the last page is all that is wasted.
const PAGE: usize = 64;

/// Values with stable indices, each of which is used again after its value is removed.
#[derive(Debug)]
pub struct Slab<T> {
    pages: Vec<Box<[Entry<T>; PAGE]>>,
    /// The first of the list of vacant entries, or the index behind all.
    vacant: usize,
    len: usize,
}

#[derive(Debug)]
enum Entry<T> {
    Occupied(T),
    Vacant { next: usize },
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), vacant: 0, len: 0 }
    }
}

impl<T> Slab<T> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value at `index`.
    pub fn get(&self, index: usize) -> Option<&T> {
        match self.pages.get(index / PAGE)?.get(index % PAGE)? {
            Entry::Occupied(value) => Some(value),
            Entry::Vacant { .. } => None,
        }
    }

    /// The value at `index`.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        match self.entry(index)? {
            Entry::Occupied(value) => Some(value),
            Entry::Vacant { .. } => None,
        }
    }

    fn entry(&mut self, index: usize) -> Option<&mut Entry<T>> {
        self.pages.get_mut(index / PAGE)?.get_mut(index % PAGE)
    }

    /// Stores a value and returns its index.
    pub fn insert(&mut self, value: T) -> usize {
        let index = self.vacant;
        if self.entry(index).is_none() {
            let vacant = |place: usize| Entry::Vacant { next: index.saturating_add(place).saturating_add(1) };
            self.pages.push(Box::new(std::array::from_fn(vacant)));
        }
        if let Some(entry) = self.entry(index)
            && let Entry::Vacant { next } = *entry
        {
            *entry = Entry::Occupied(value);
            self.vacant = next;
            self.len = self.len.saturating_add(1);
        }
        index
    }

    /// Removes the value at `index`, if there is one.
    pub fn try_remove(&mut self, index: usize) -> Option<T> {
        let next = self.vacant;
        let entry = self.entry(index)?;
        if matches!(entry, Entry::Vacant { .. }) {
            return None;
        }
        let removed = std::mem::replace(entry, Entry::Vacant { next });
        self.vacant = index;
        self.len = self.len.saturating_sub(1);
        match removed {
            Entry::Occupied(value) => Some(value),
            Entry::Vacant { .. } => None, // not reached
        }
    }

    /// The indices that there are, vacant ones included.
    pub fn indices(&self) -> std::ops::Range<usize> {
        0..self.pages.len().saturating_mul(PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_its_value_until_that_is_removed_and_is_used_again() {
        let mut slab = Slab::default();
        let indices: Vec<usize> = (0..200).map(|value| slab.insert(value)).collect();
        assert!(indices.iter().copied().eq(0..200));
        assert_eq!((slab.try_remove(70), slab.try_remove(70), slab.try_remove(200)), (Some(70), None, None));
        assert_eq!((slab.get(70), slab.get(71), slab.get(200)), (None, Some(&71), None));
        assert_eq!(slab.try_remove(3), Some(3));
        assert_eq!(slab.len(), 198);
        assert_eq!(slab.indices(), 0..256);
        assert!(
            slab.indices().filter_map(|index| Some((index, *slab.get(index)?))).all(|(index, value)| index == value)
        );
        assert_eq!([slab.insert(1_003), slab.insert(1_070), slab.insert(200)], [3, 70, 200]);
        assert_eq!((slab.get(3), slab.get(70), slab.len()), (Some(&1_003), Some(&1_070), 201));
    }
}
