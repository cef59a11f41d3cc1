//! Numbers as text.

/// Writes a number without the formatting machinery, which costs more than the rest of the plan.
pub(crate) fn itoa(number: u16, room: &mut [u8; 5]) -> &str {
    let mut rest = number;
    let mut at = room.len();
    for (index, digit) in room.iter_mut().enumerate().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        at = index;
        if rest == 0 {
            break;
        }
    }
    room.get(at..)
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .unwrap_or("0")
}

#[cfg(test)]
mod tests {
    use super::itoa;

    #[test]
    fn numbers_are_written_whole() {
        for number in [0, 7, 10, 443, 8080, 10_000, u16::MAX] {
            assert_eq!(itoa(number, &mut [0; 5]), number.to_string());
        }
    }
}
