"""Every benchmark that needs no GPU and little time, one after the other. `make bench`."""

from bench import answers, data, features, packing, speech, startup, train
from bench.machine import describe

if __name__ == "__main__":
    print(f"machine: {describe()}")
    startup.main()
    answers.main()
    speech.main()
    features.main()
    train.main()
    packing.main()
    data.main()
