//! Runs of clear bits in bitmaps whose first bit is the lowest of byte 0, as all file systems here have them.

/// Calls `visit(first, count)` for each run of clear bits among the first `bits` of a bitmap; what lies behind its bytes counts as set.
pub(super) fn clear_runs(bytes: &[u8], bits: u64, mut visit: impl FnMut(u64, u64)) {
    let bits = bits.min(bytes.len() as u64 * 8);
    let (mut at, mut start) = (0_u64, None);
    let end_run = |start: &mut Option<u64>, at: u64, visit: &mut dyn FnMut(u64, u64)| {
        if let Some(first) = start.take() {
            visit(first, at - first);
        }
    };
    for byte in bytes {
        if at >= bits {
            break;
        }
        // Most bytes are all one or the other.
        if *byte == 0 && at + 8 <= bits {
            start.get_or_insert(at);
            at += 8;
            continue;
        }
        for bit in 0..8_u32 {
            if at >= bits {
                break;
            }
            if byte >> bit & 1 == 0 {
                start.get_or_insert(at);
            } else {
                end_run(&mut start, at, &mut visit);
            }
            at += 1;
        }
    }
    end_run(&mut start, at, &mut visit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(bytes: &[u8], bits: u64) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        clear_runs(bytes, bits, |first, count| found.push((first, count)));
        found
    }

    #[test]
    fn the_lowest_bit_is_the_first() {
        assert_eq!(runs(&[0b1111_1110, 0xff], 16), [(0, 1)]);
        assert_eq!(runs(&[0b0111_1111, 0, 0b1111_1100], 24), [(7, 11)]);
        assert_eq!(runs(&[0, 0], 11), [(0, 11)]);
        assert_eq!(runs(&[0xff, 0b1010_1111], 16), [(12, 1), (14, 1)]);
        assert_eq!(runs(&[0], 64), [(0, 8)], "what is not there is not free");
        assert_eq!(runs(&[], 64), []);
    }
}
