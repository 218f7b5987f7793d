//! The record of each worker, found by its id, or at once by where it lies.
//!
//! A record stays where it is as long as there is one. Who looks a worker up for every connection
//! remembers where it lies and needs no search, which costs more the more workers there are.

use std::collections::BTreeMap;

use super::WorkerId;
use super::choice::Candidate;
use super::roster::Worker;

/// Every worker's record.
#[derive(Debug, Default)]
pub(super) struct Records {
    records: Vec<Option<Worker>>,
    /// Where each is, in order of age.
    index: BTreeMap<WorkerId, usize>,
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// In order of age.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.index.values().filter_map(|&place| self.at(place))
    }

    /// In no order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.records.iter_mut().flatten()
    }

    /// Where it lies.
    pub(super) fn place(&self, id: WorkerId) -> Option<usize> {
        self.index.get(&id).copied()
    }

    /// Whoever's record lies there.
    pub(super) fn at(&self, place: usize) -> Option<&Worker> {
        self.records.get(place)?.as_ref()
    }

    /// Those of a pool who may be chosen, in their order.
    pub(super) fn of<'a>(
        &'a self,
        candidates: &'a [Candidate],
    ) -> impl Iterator<Item = &'a Worker> {
        candidates.iter().filter_map(|it| self.at(it.record))
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.at(self.place(id)?)
    }

    /// `likely`: where it may lie.
    pub(super) fn get_mut(&mut self, id: WorkerId, likely: Option<usize>) -> Option<&mut Worker> {
        let is_it = |place: &usize| self.at(*place).is_some_and(|it| it.who.worker == id);
        let place = likely.filter(is_it).or_else(|| self.place(id))?;
        self.records.get_mut(place)?.as_mut()
    }

    pub(super) fn insert(&mut self, worker: Worker) -> &Worker {
        let vacant = self.records.iter().position(Option::is_none);
        let place = vacant.unwrap_or(self.records.len());
        if vacant.is_none() {
            self.records.push(None);
        }
        self.index.insert(worker.who.worker, place);
        self.records[place].insert(worker)
    }

    pub(super) fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        let place = self.index.remove(&id)?;
        self.records.get_mut(place)?.take()
    }
}
