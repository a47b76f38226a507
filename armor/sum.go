package armor

import "strings"

// sumLength is how many characters a checksum has: 15 bits.
const sumLength = 3

// crc15 is CRC-15/CAN (polynomial 0x4599, initially 0) over symbols of five
// bits, the highest bit first. It finds every change within 15 bits: any wrong
// character, any two or three beside each other swapped or wrong. Of other
// mistakes it misses one in 32,768.
type crc15 uint16

func (c *crc15) add(symbol int) {
	for bit := 4; bit >= 0; bit-- {
		carry := int(*c>>14)&1 != symbol>>bit&1
		*c = *c << 1 & 0x7fff
		if carry {
			*c ^= 0x4599
		}
	}
}

// number adds a number of 15 bits.
func (c *crc15) number(n int) {
	c.add(n >> 10 & 31)
	c.add(n >> 5 & 31)
	c.add(n & 31)
}

func (c crc15) String() string {
	return string([]byte{alphabet[c>>10&31], alphabet[c>>5&31], alphabet[c&31]})
}

// lineSum is the checksum of line n, its number included.
func lineSum(n int, data string) string {
	var c crc15
	c.number(n)
	for i := range len(data) {
		c.add(strings.IndexByte(alphabet, data[i]))
	}
	return c.String()
}

// headerSum is the checksum of the first line.
func headerSum(kind, count int) string {
	var c crc15
	c.add(kind)
	c.number(count)
	return c.String()
}

// cutSum parts a line's data from its checksum.
func cutSum(s string) (data, sum string) {
	at := max(0, len(s)-sumLength)
	return s[:at], s[at:]
}
