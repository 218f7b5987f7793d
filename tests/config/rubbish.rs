//! Rubbish that follows from a seed, and good files that chance has damaged.

use rcluster::config::{Config, load};

use crate::good::EXAMPLE;
use crate::world::{World, judge};

/// Bytes from nowhere.
pub(crate) fn from_nowhere(world: &mut World) {
    let mut dice = Dice(0x5eed);
    for round in 0..60 {
        let length = 1 + dice.below(400);
        let bytes: Vec<u8> = (0..length)
            .map(|_| match round % 3 {
                0 => dice.byte(),
                1 => dice.byte() % 32,
                _ => SOUP[dice.below(SOUP.len())],
            })
            .collect();
        world.refuse_bytes(&bytes);
    }
    for bytes in [
        vec![b'['; 300_000],
        [b"a = ".to_vec(), vec![b'['; 300_000]].concat(),
        "a.".repeat(100_000).into_bytes(),
        "[a\n".repeat(20_000).into_bytes(),
        "a = 1\n".repeat(20_000).into_bytes(),
        "\u{7f}ELF\u{2}\u{1}\u{1}\0\0\0\0".as_bytes().to_vec(),
        vec![0; 4096],
        vec![0xff; 4096],
        vec![b'\n'; 100_000],
        // One long line of unknown keys: finding the place of each would take for ever.
        format!("master = {{ {} }}", numbered(80_000)).into_bytes(),
        format!("pool = {{ {} }}", numbered(80_000)).into_bytes(),
    ] {
        world.refuse_bytes(&bytes);
    }
}

fn numbered(count: u32) -> String {
    let keys: Vec<String> = (0..count).map(|number| format!("k{number} = 1")).collect();
    keys.join(", ")
}

/// Loads thousands of damaged copies of a good file.
pub(crate) fn mutations() {
    let world = World::new();
    let mut dice = Dice(1);
    let mut accepted: Vec<Config> = Vec::new();
    let mut refused = 0;
    for _ in 0..1_500 {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        for _ in 0..1 + dice.below(3) {
            if bytes.is_empty() {
                break;
            }
            let at = dice.below(bytes.len());
            match dice.below(5) {
                0 => bytes[at] = dice.byte(),
                1 => bytes[at] = SOUP[dice.below(SOUP.len())],
                2 => drop(bytes.remove(at)),
                3 => bytes.truncate(at + 1),
                _ => {
                    let end = (at + dice.below(30)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    let to = dice.below(bytes.len());
                    bytes.splice(to..to, part);
                }
            }
        }
        world.write("rcluster.toml", &bytes);
        match load(&world.main()) {
            Ok(config) => accepted.push(config),
            Err(problems) => {
                judge(&problems.0, &String::from_utf8_lossy(&bytes));
                refused += 1;
            }
        }
    }
    // Damage within comments and texts is no damage; most of the rest is.
    assert!(refused > 500 && accepted.len() > 50, "{refused} {}", accepted.len());
    for config in accepted {
        crate::good::explains_itself(&world, &config);
    }
}

/// The characters that TOML is made of.
const SOUP: &[u8] = b"[]{}=\"'.,\n#a1-_\\ \r\t";

/// Chance with a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.next() & 0xff).unwrap()
    }
}
