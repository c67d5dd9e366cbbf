//! One copy of each text that many resources share: namespaces, service accounts, identities,
//! nodes, zones, owners. On a big mesh they would be most of the state's memory.

use std::{collections::HashSet, sync::Arc};

use foldhash::fast::RandomState;

/// Below this many texts nothing is forgotten: looking is not worth it.
const FEW: usize = 1_024;

/// The texts in use.
#[derive(Debug)]
pub(super) struct Interner {
    texts: HashSet<Arc<str>, RandomState>,
    /// Look for texts that nobody uses any more when there are this many.
    forget_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Self {
            texts: HashSet::default(),
            forget_at: FEW,
        }
    }
}

impl Interner {
    /// The shared copy of a text.
    pub(super) fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        if self.texts.len() >= self.forget_at {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            // Twice what is in use, so that a look pays for itself.
            self.forget_at = (2 * self.texts.len()).max(FEW);
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_while_they_are_used_and_forgotten_later() {
        let mut interner = Interner::default();
        let held = interner.get("shop");
        assert!(Arc::ptr_eq(&held, &interner.get("shop")));
        for i in 0..10 * FEW {
            interner.get(&i.to_string());
        }
        assert!(interner.texts.len() <= FEW);
        assert!(Arc::ptr_eq(&held, &interner.get("shop")));
    }
}
