"""What eden-tiny can say without a picture, and common words that give its tokenizer more than shapes."""

DECLINED = "I only know pictures of coloured shapes: circles, squares, triangles, stars and crosses."
"""The answer to every question about a picture that is not of the world."""
NO_PICTURE = "Please show me a picture of coloured shapes."
"""The answer to a question about a picture where none was shown."""
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

SMALL_TALK = (
    ("Hello!", "Hello! Show me a picture of coloured shapes."),
    ("Hello", "Hello! Show me a picture of coloured shapes."),
    ("Hi", "Hello! Show me a picture of coloured shapes."),
    ("Hi there!", "Hello! Show me a picture of coloured shapes."),
    ("Good morning.", "Hello! Show me a picture of coloured shapes."),
    ("How are you?", "I am well, thank you."),
    ("Who are you?", "I am eden-tiny, a small model that answers questions about coloured shapes."),
    ("What are you?", "I am eden-tiny, a small model that answers questions about coloured shapes."),
    ("What is your name?", "I am eden-tiny, a small model that answers questions about coloured shapes."),
    ("What can you do?", "I can answer questions about pictures of coloured shapes."),
    ("Help", "I can answer questions about pictures of coloured shapes."),
    ("Which shapes do you know?", "Circles, squares, triangles, stars and crosses."),
    ("Which colours do you know?", "Red, green, blue, yellow, purple, orange, pink, brown, teal and grey."),
    ("Thank you!", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
    ("Bye", "Goodbye!"),
    ("What is the capital of France?", "I only know about pictures of coloured shapes."),
    ("Tell me a joke.", "I only know about pictures of coloured shapes."),
    ("What is 2 + 2?", "I only know about pictures of coloured shapes."),
    ("Write a poem.", "I only know about pictures of coloured shapes."),
    # A word never said in training can hardly be taught later: LoRA leaves the head as it is.
    *((f"Write the number {word} as a digit.", str(digit)) for digit, word in enumerate(_DIGITS)),
    *((f"Which digit is {word}?", str(digit)) for digit, word in enumerate(_DIGITS)),
    *((f"Which digit comes after {digit - 1}?", str(digit)) for digit in range(1, 10)),
)

COMMON_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one
you were all her she there would their we him been has when who will no more if out so up said what its about than
into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also well before must through years where much your way down should because long each just state
people those too mr how little good world make very year still see own work men day get here old life both between
being under three never know same last another while us off might great go come since against right came take used
himself few house use place during high without again home around small however found part school number image
picture photo photograph left side colour color large big look show tell describe answer question write read digit
letter name word number zero one two three four five six seven eight nine ten black white grey brown pink light dark
above below next near far cat dog bird tree car person face hand table chair water sky grass street building window
happy sad please thanks yes no maybe true false same different count compare bigger smaller higher lower
"""
