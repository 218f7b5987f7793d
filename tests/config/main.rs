//! Configuration files as people write them, right and wrong.
//!
//! `table` and `whole` have the mistakes that were thought of, one by one, each with its exact place;
//! `generated` those that follow from the list of keys; `rubbish` those that follow from a seed;
//! `files` what can be wrong around the text. `good` has
//! what must be accepted, value by value; `presets` what they come to. `world` writes the files and judges the refusals.

#![expect(clippy::unwrap_used, reason = "what cannot fail in a test may panic")]

mod files;
mod generated;
mod good;
mod presets;
mod rubbish;
mod table;
mod whole;
mod world;

use world::World;

/// A group of bad configurations.
type Group = fn(&mut World);

#[test]
fn every_bad_configuration_is_refused_with_place_and_remedy() {
    let mut world = World::new();
    let mut told = Vec::new();
    let groups: &[(&str, Group)] = &[
        ("by hand", table::by_hand),
        ("whole files", whole::one_each),
        ("several at once", whole::several_at_once),
        ("syntax", whole::syntax),
        ("typos", generated::typos),
        ("wrong types", generated::wrong_types),
        ("out of range", generated::out_of_range),
        ("no such times", generated::no_such_times),
        ("empty texts", generated::empty_texts),
        ("written twice", generated::written_twice),
        ("zero bytes", generated::zero_bytes),
        ("of other kinds", generated::of_other_kinds),
        ("presets", presets::refused),
        ("cut off", generated::cut_off),
        ("rubbish", rubbish::from_nowhere),
        ("files", files::around_the_text),
    ];
    for (name, group) in groups {
        let before = world.count();
        group(&mut world);
        told.push(format!("{} {name}", world.count() - before));
    }
    println!("{} bad configurations: {}", world.count(), told.join(", "));
    assert!(world.count() >= 300);
}

#[test]
fn no_mutation_of_a_good_file_makes_a_panic_or_a_bad_sentence() {
    rubbish::mutations();
}
