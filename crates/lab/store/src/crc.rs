//! CRC-32C (Castagnoli), eight bytes a step.

const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut index = 0;
    while index < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "index < 256; const fn cannot use try_from")]
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][index] = value;
        index += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut index = 0;
        while index < 256 {
            let last = tables[table - 1][index];
            tables[table][index] = (last >> 8) ^ tables[0][(last & 0xff) as usize];
            index += 1;
        }
        table += 1;
    }
    tables
}

/// Continues the checksum `crc` (0 to begin) over `data`.
pub(crate) fn crc32c(crc: u32, data: &[u8]) -> u32 {
    let mut crc = !crc;
    let mut steps = data.chunks_exact(8);
    for step in &mut steps {
        let (low, high) = step.split_at(4);
        let mut mixed = crc.to_le_bytes();
        for (mixed, byte) in mixed.iter_mut().zip(low) {
            *mixed ^= byte;
        }
        crc = 0;
        for (byte, table) in mixed.iter().chain(high).zip(TABLES.iter().rev()) {
            crc ^= table[usize::from(*byte)];
        }
    }
    for byte in steps.remainder() {
        let [low, ..] = crc.to_le_bytes();
        crc = (crc >> 8) ^ TABLES[0][usize::from(low ^ byte)];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn check_values_of_rfc_3720() {
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(0, &[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn continues_where_it_stopped() {
        let data: Vec<u8> = (0..=255).collect();
        for cut in 0..data.len() {
            assert_eq!(crc32c(crc32c(0, &data[..cut]), &data[cut..]), crc32c(0, &data));
        }
    }
}
