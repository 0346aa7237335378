//! Finding zeros.

/// Granularity at which zeros are looked for: a page of the page cache and a cluster of most file systems.
pub(crate) const PIECE: usize = 4096;

/// Whether every byte is zero. The first word decides almost always.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<64>();
    // A fixed-size chunk folds into a few vector instructions.
    words.iter().all(|word| word.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// The next run of `data` from `start` whose pieces all are zero, or all are not. Pieces are cut where `position`
/// (of `data[0]` on the disk) plus the index is a multiple of [`PIECE`]. Returns the end of the run and whether it is zero.
pub(crate) fn next_run(data: &[u8], position: u64, start: usize) -> (usize, bool) {
    let piece_end = |index: usize| {
        let into = usize::try_from((position + index as u64) % PIECE as u64).unwrap_or(0);
        (index + PIECE - into).min(data.len())
    };
    let mut end = piece_end(start);
    let zero = is_zero(&data[start..end]);
    while end < data.len() {
        let next = piece_end(end);
        if is_zero(&data[end..next]) != zero {
            break;
        }
        end = next;
    }
    (end, zero)
}

/// Whether some piece of `data` is zero, which lies at `position` on the disk.
pub(crate) fn has_piece(data: &[u8], position: u64) -> bool {
    let mut at = 0;
    while at < data.len() {
        let (end, zero) = next_run(data, position, at);
        if zero {
            return true;
        }
        at = end;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_at_pages_of_the_disk() {
        let mut data = vec![0_u8; 3 * PIECE];
        data[PIECE] = 1; // at disk position 512 + 4096: in the second page of the disk
        assert_eq!(next_run(&data, 512, 0), (PIECE - 512, true));
        assert_eq!(next_run(&data, 512, PIECE - 512), (2 * PIECE - 512, false));
        assert_eq!(next_run(&data, 512, 2 * PIECE - 512), (3 * PIECE, true));
    }

    #[test]
    fn one_byte_anywhere_is_seen() {
        for len in [1, 63, 64, 65, 4096, 4097] {
            for at in [0, len / 2, len - 1] {
                let mut data = vec![0; len];
                assert!(is_zero(&data));
                data[at] = 0x80;
                assert!(!is_zero(&data), "{at} of {len}");
            }
        }
    }
}
